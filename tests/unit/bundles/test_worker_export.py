import json
import shutil
from pathlib import Path

import pytest

from dreambooth_ray.bundles import worker_export
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.tensor_files import open_tensors
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.runs import is_finished, open_run
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.scratch import ScratchFolder
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.download import STATE
from dreambooth_ray.training.checkpoint.last_local_checkpoint import LastLocalCheckpoint
from dreambooth_ray.training.strategy import DirectCheckpointIO
from dreambooth_ray.training.worker_job import WorkerJob


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Config:
    text = f"run_id: one\nsubject: {{photos: {tmp_path}, class_noun: robot}}"
    overrides = [f"model.uri={tiny_model}", f"storage.uri={tmp_path}", "train.steps=5"]
    return parse_config(text, "test", [*overrides, f"storage.scratch={tmp_path / 'scratch'}"])


@pytest.fixture
def run(config: Config) -> Store:
    run = open_run(config)
    run.write(paths.METRICS, b'{"step": 1, "loss": 1.0}\n')
    return run


@pytest.fixture
def kept(config: Config, run: Store, tiny_model: Path) -> LastLocalCheckpoint:
    """The committed checkpoint of the last step, of weights that are all 0.5."""
    parts = load_components(tiny_model)
    apply_train_method(config, parts)
    weights = {
        f"{name}.{key}": weight.detach().fill_(0.5)
        for name in ("unet", "text_encoder")
        for key, weight in getattr(parts, name).named_parameters()
        if weight.requires_grad
    }
    scratch = ScratchFolder("checkpoint-one", config.storage.scratch)
    DirectCheckpointIO().save_checkpoint({"state_dict": weights}, scratch.path / STATE)
    about: dict[str, object] = {"step": 5, "created_at": 12.5}
    manifest.commit_artifact(run, paths.checkpoint(5, lease=1), scratch.path, about)
    digests = {entry.name: entry.sha256 for entry in manifest.local_entries(scratch.path)}
    return LastLocalCheckpoint(5, scratch, digests)


def job_of(config: Config, run: Store, directory: Path) -> WorkerJob:
    return WorkerJob(dump_config(config), run.uri, str(directory))


def test_the_workers_own_files_are_used_and_storage_is_not_read(
    config: Config,
    run: Store,
    kept: LastLocalCheckpoint,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for reading in ("sha256", "download"):
        monkeypatch.setattr(Store, reading, None)
    worker_export.try_export_local_checkpoint(job_of(config, run, tiny_model), kept)
    assert is_finished(run)
    written = open_tensors(
        run.local_path(paths.BUNDLE) / "unet" / "diffusion_pytorch_model.safetensors"
    )
    original = open_tensors(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    assert {name: tensor.shape for name, tensor in written.items()} == {
        name: tensor.shape for name, tensor in original.items()
    }
    assert all((tensor == 0.5).all() for tensor in written.values())
    # What it needed on the way is gone; the checkpoint is its owner's to remove.
    assert [p for p in kept.scratch.path.parent.iterdir() if p.is_dir()] == [kept.scratch.path]


@pytest.mark.parametrize("name", ["state_dict.safetensors", STATE])
def test_a_checkpoint_that_storage_has_lost_gets_no_bundle(
    config: Config, run: Store, kept: LastLocalCheckpoint, tiny_model: Path, name: str
) -> None:
    run.remove(f"{manifest.find_artifact_folder(run, paths.checkpoint(5, lease=1))}/{name}")
    worker_export.try_export_local_checkpoint(job_of(config, run, tiny_model), kept)
    assert not is_finished(run)


def test_a_changed_byte_of_the_workers_own_files_is_found(
    config: Config, run: Store, kept: LastLocalCheckpoint, tiny_model: Path
) -> None:
    weights = kept.scratch.path / "state_dict.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    worker_export.try_export_local_checkpoint(job_of(config, run, tiny_model), kept)
    assert not is_finished(run)
    assert not run.names(paths.BUNDLE)


def test_what_fails_in_the_worker_is_left_to_who_started_the_run(
    config: Config, run: Store, kept: LastLocalCheckpoint, tiny_model: Path
) -> None:
    (kept.scratch.path / "state_dict.safetensors").write_bytes(b"cut off")
    worker_export.try_export_local_checkpoint(job_of(config, run, tiny_model), kept)
    assert not is_finished(run)
    # Another process reads it from storage.
    worker_export.try_export_local_checkpoint(job_of(config, run, tiny_model), None)
    assert is_finished(run)


def test_two_holders_of_one_checkpoint_write_the_same_bytes(
    config: Config, run: Store, kept: LastLocalCheckpoint, tiny_model: Path
) -> None:
    """The second goes on with other machines, as a resume may."""
    bundles = []
    other = config.model_copy(
        update={
            "cluster": config.cluster.model_copy(update={"workers": 2}),
            "checkpoint": config.checkpoint.model_copy(update={"every": 3}),
        }
    )
    for holders_config, local_checkpoint in ((config, kept), (other, None)):
        worker_export.try_export_local_checkpoint(
            job_of(holders_config, run, tiny_model), local_checkpoint
        )
        folder = run.local_path(paths.BUNDLE)
        files = [path for path in folder.rglob("*") if path.is_file()]
        bundles.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
        shutil.rmtree(folder)
    assert bundles[0] == bundles[1]
    assert b"workers" not in bundles[0]["card.md"]
    assert json.loads(bundles[0][manifest.MANIFEST])["about"]["created_at"] == 12.5


def test_where_evaluations_choose_the_worker_makes_none(
    config: Config, run: Store, kept: LastLocalCheckpoint, tiny_model: Path
) -> None:
    choice = config.choice.model_copy(update={"rule": "best"})
    job = job_of(config.model_copy(update={"choice": choice}), run, tiny_model)
    worker_export.try_export_local_checkpoint(job, kept)
    assert not is_finished(run)
