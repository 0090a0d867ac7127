"""Theme `checkpoint`: what training waits for its checkpoints, their upload, and after a kill.

The wait: one worker's training in this process, with the product's own callbacks, a checkpoint of
the complete state every 50 steps (25 in smoke profile), uploaded beside it. What counts is the time
in which the training thread does nothing else; the last checkpoint, which a run waits for, is
apart. The upload: the commit of those files with hashes, against fsspec's plain copy of them. After
a kill: a worker of `dreambooth train` is killed between two checkpoints; until the run is past
where it was.

BENCH_STORAGE in the environment names other storage than a folder: s3://bucket/bench.
"""

import os
import tempfile
import time
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from benchmarks.measure import BenchmarkCase, compare_sides, compute_quantiles, make_timed
from benchmarks.recovery import measure_recovery
from benchmarks.theme import BenchmarkSettings
from benchmarks.timed_run_setup import generate_class_images
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import (
    Photograph,
    read_photographs_for_subject_config,
    split_photographs,
)
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory, model_hash
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.training_step_callback import TrainingStepCallback
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.checkpoint.save import CheckpointSaver, WorkerRank
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.nan_guard import NanGuard
from dreambooth_ray.training.strategy import DirectCheckpointIO

CLASS_IMAGES = 8
# Share of its time that training may wait for checkpoints.
MAX_WAITING_SHARE = 0.05


class TrainingEndClock(pl.Callback):
    """When the last step was over, before the last checkpoint is waited for."""

    at_s = 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time."""
        self.at_s = time.perf_counter()


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """Wait and upload of both methods, in smoke profile of one, and a recovery."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    external_storage_uri = os.environ.get("BENCH_STORAGE", "")
    cases, interval_steps = list[dict[str, Any]](), setting.pick(25, 50)
    for method in ("full", "lora")[: setting.pick(1, 2)]:
        with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
            folder = Path(temp_folder)
            storage_uri = external_storage_uri or str(folder / "storage")
            cases.append(
                _measure_checkpoint_waiting(
                    method,
                    interval_steps,
                    interval_steps * setting.pick(2, 8),
                    storage_uri,
                    folder,
                )
            )
            cases.append(_measure_upload(method, storage_uri, folder, setting.pick(3, 9)))
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        storage_uri = external_storage_uri or str(Path(temp_folder) / "storage")
        num_kills, num_workers, num_class_images = (
            setting.pick(*pair) for pair in ((1, 3), (1, 2), (0, 8))
        )
        cases.append(
            measure_recovery(
                Path(temp_folder), storage_uri, num_kills, num_workers, num_class_images
            )
        )
    return {
        "headline": {"without_waiting": cases[0]["case"]},
        "cases": cases,
        "configuration": {
            "every": interval_steps,
            "storage": "object storage" if external_storage_uri else "a folder",
            "class_images": CLASS_IMAGES, "workers": 1,
        },
    }  # fmt: skip


def _measure_checkpoint_waiting(
    method: str, interval_steps: int, steps: int, storage: str, folder: Path
) -> dict[str, Any]:
    """One training; seconds, shares and bytes."""
    write_photographs(folder / "photos", 7, "robot", 5, 256)
    overrides = [
        f"subject.photos={folder / 'photos'}", f"storage.uri={storage}", f"train.method={method}",
        f"train.steps={steps}", f"checkpoint.every={interval_steps}", f"prior.count={CLASS_IMAGES}",
        "prior.num_inference_steps=8", "sample.every=0", "cluster.workers=1", f"run_id={method}",
    ]  # fmt: skip
    config = load_config("toy-robot.yaml", overrides)
    model_folder = model_directory(config.model.uri)
    prior_request, prior_store = generate_class_images(PreparedRun(config, model_folder))
    components = load_components(model_folder)
    apply_train_method(config, components)
    photographs = _read_training_photographs(config)
    dataset = TrainingDataset(
        config, components, photographs, PriorSet(prior_store, prior_request.count), (0, 1)
    )
    run_store = Store(storage).sub(paths.run(method))
    background_work, end_clock = SideWork(run_store), TrainingEndClock()
    loggers, worker_rank = Loggers(run_store, config, 0, background_work), WorkerRank(0, 0, 0, 1)
    saver = CheckpointSaver(
        run_store, config, background_work, worker_rank, _make_run_metadata(config, model_folder)
    )
    nan_guard = NanGuard(dataset, config.train.precision)
    step_callback = TrainingStepCallback(
        run_store, dataset, side_work=background_work, loggers=loggers, guard=nan_guard, saver=saver
    )
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
        callbacks=[end_clock, step_callback], enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=config.train.max_grad_norm,
        use_distributed_sampler=False, default_root_dir=folder, plugins=[DirectCheckpointIO()],
    )  # fmt: skip
    start_s = time.perf_counter()
    trainer.fit(DreamBoothModule(config, components), DataLoader(dataset, batch_size=None))
    step_callback.finish(trainer)
    training_s, last_save_s = end_clock.at_s - start_s, time.perf_counter() - end_clock.at_s
    newest_checkpoint = find_checkpoint(run_store, committed_steps(run_store)[-1]).name
    training_share = 1 - saver.waited_s / training_s
    return {
        "case": f"{method}: a checkpoint every {interval_steps} steps",
        "peer": "without_waiting",
        "steps": steps,
        "bytes_each": manifest.artifact_size_bytes(run_store, newest_checkpoint),
        "training_s": round(training_s, 2),
        "waited_s": round(saver.waited_s, 3),
        "last_checkpoint_s": round(last_save_s, 2),
        "ratio": compute_quantiles([training_share]),
        "bar": 1 - MAX_WAITING_SHARE,
        "reached": training_share >= 1 - MAX_WAITING_SHARE,
    }


def _read_training_photographs(config: Config) -> list[list[Photograph]]:
    """Photographs of each subject, without those held out for validation."""
    return [
        split_photographs(config, read_photographs_for_subject_config(config, subject))[0]
        for subject in config.all_subjects
    ]


def _measure_upload(method: str, storage: str, folder: Path, pairs: int) -> dict[str, Any]:
    """Bytes a second of a commit, and of the same files copied without hashes or manifest."""
    run_store = Store(storage).sub(paths.run(method))
    source_folder = folder / "files"
    newest_checkpoint = find_checkpoint(run_store, committed_steps(run_store)[-1])
    manifest.download_artifact(run_store, newest_checkpoint.name, source_folder)
    copy_store, copy_counter = Store(storage).sub("copies"), count()
    filesystem, root = copy_store.filesystem

    def commit_files() -> None:
        manifest.commit_artifact(copy_store, str(next(copy_counter)), source_folder, {})

    def copy_files() -> None:
        filesystem.put(f"{source_folder}/", f"{root}/{next(copy_counter)}/", recursive=True)

    megabytes = (
        sum(path.stat().st_size for path in source_folder.rglob("*") if path.is_file()) / 1e6
    )
    case = BenchmarkCase(f"{method}: upload with hashes", "plain_copy", megabytes, "MB")
    return compare_sides(case, make_timed(commit_files), make_timed(copy_files), pairs)


def _make_run_metadata(config: Config, directory: Path) -> dict[str, object]:
    strategy = config.train.strategy
    return {"strategy": strategy, "world_size": 1, "model_hash": model_hash(directory)}
