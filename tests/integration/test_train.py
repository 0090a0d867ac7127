import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.restarts import read_restarts
from tests.integration.conftest import SMALL, Background, Run, dreambooth, kill_tree, train

DREAMBENCH = Path(
    os.environ.get("DREAMBENCH_DIR", Path(__file__).parents[3] / "shared" / "dreambench")
)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "bundle" / "unet" / "diffusion_pytorch_model.safetensors")


def assert_same(one: Run, two: Run) -> None:
    """Equal curves, number for number, and equal weights, bit for bit."""
    assert one.curve == two.curve
    mine, yours = weights(one), weights(two)
    assert all(torch.equal(mine[k], yours[k]) for k in mine)


def test_the_page_of_a_runs_files_has_all_of_them(undisturbed: Run) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/run-files.md").read_text()
    missing = [p.name for p in undisturbed.folder.iterdir() if f"`{p.name}`" not in page]
    assert not missing


def test_a_run_leaves_what_is_promised(undisturbed: Run) -> None:
    assert [r["step"] for r in undisturbed.metrics] == list(range(1, 17))
    first, last = undisturbed.metrics[0], undisturbed.metrics[-1]
    assert first.keys() >= {"images_seen", "loss", "instance_loss", "prior_loss", "lr", "grad_norm"}
    assert last["images_seen"] == 16 * 4
    weight = yaml.safe_load((undisturbed.folder / "config.yaml").read_text())["prior"]["weight"]
    assert last["loss"] == pytest.approx(
        last["instance_loss"] + weight * last["prior_loss"], rel=1e-6
    )
    assert first["grad_norm"] > 0
    names = {p.name for p in undisturbed.folder.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoints", "bundle", "tensorboard"}
    checkpoints = sorted(p.name for p in (undisturbed.folder / "checkpoints").glob("*.json"))
    # By step and the number of the lease that the run was held by.
    assert checkpoints == ["step-00000015-000001.json", "step-00000016-000001.json"]


def test_the_bundle_is_whole(undisturbed: Run) -> None:
    bundle = undisturbed.folder / "bundle"
    listed = json.loads((bundle / "manifest.json").read_text())
    found = {e.name: (e.size_bytes, e.sha256) for e in manifest.local_entries(bundle)}
    assert {f["name"]: (f["size_bytes"], f["sha256"]) for f in listed["files"]} == found
    assert listed["about"]["identifier"] == "sks"
    assert "sks" in (bundle / "card.md").read_text()


def test_tensorboard_shows_losses_and_samples(undisturbed: Run) -> None:
    events = EventAccumulator(str(undisturbed.folder / "tensorboard")).Reload()
    losses = [e.value for e in events.Scalars("train/instance_loss")]
    assert losses == pytest.approx([r["instance_loss"] for r in undisturbed.metrics])
    assert {"train/prior_loss", "train/lr", "train/grad_norm", "throughput/images_per_s"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.step for e in events.Images("samples/a sks robot")] == [6, 12]


def test_the_bundle_draws_in_diffusers_what_generate_draws(
    undisturbed: Run, tmp_path: Path
) -> None:
    done = dreambooth(
        "generate", str(undisturbed.folder), "--prompt", "a sks robot on the beach",
        "--seed", "5", "--num-images", "2", "--num-inference-steps", "4", "--grid",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, grid = (Image.open(tmp_path / line) for line in done.stdout.splitlines())
    pipeline = StableDiffusionPipeline.from_pretrained(undisturbed.folder / "bundle")
    plain = pipeline(
        "a sks robot on the beach",
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    difference = torch.tensor(list(first.tobytes())) - torch.tensor(list(plain.tobytes()))
    assert difference.abs().max() <= 1
    assert (second.text["seed"], second.text["prompt"]) == ("6", "a sks robot on the beach")  # type: ignore[attr-defined]
    assert grid.width > 2 * first.width


def test_a_killed_worker_and_then_a_killed_run_change_no_number(
    undisturbed: Run, in_background: Callable[..., Background], tmp_path: Path
) -> None:
    at = random.Random(os.getpid()).randint(4, 9)
    run = in_background(*SMALL)
    run.wait_for_step(at)
    workers = run.train_workers()
    assert len(workers) == 2
    random.Random(os.getpid()).choice(workers).kill()
    run.wait_until(lambda: set(run.train_workers()).isdisjoint(workers), "the workers' end")
    run.wait_for_step(12)
    restart = read_restarts(Store(str(run.folder)))[0]
    # The checkpoint of step 5 may have been on its way when the worker died.
    assert restart.attempt == 2
    assert restart.step in (0, 5)
    assert "worker died" in restart.cause
    assert Run(run.folder).metrics[-1]["restarts"] == 1
    kill_tree(run.process)
    done = dreambooth("resume", str(run.folder), cwd=tmp_path)
    assert done.returncode == 0, f"killed at step {at}: {done.stderr}"
    assert done.stdout.splitlines()[-1] == str(run.folder)
    assert_same(Run(run.folder), undisturbed)


@pytest.mark.demo
def test_another_models_sizes_train_too(other_model: Path, tmp_path: Path, photos: Path) -> None:
    run = train(
        tmp_path, photos, *SMALL, f"model.uri={other_model}", "train.resolution=128",
        "train.steps=2", "prior.count=2", "cluster.workers=1", "prior.actors=1", "train.flip=true",
    )  # fmt: skip
    image = StableDiffusionPipeline.from_pretrained(run.folder / "bundle")(
        "a sks robot", num_inference_steps=2
    ).images[0]
    assert image.size == (128, 128)


@pytest.mark.demo
@pytest.mark.skipif(not (DREAMBENCH / "dog").is_dir(), reason="no DreamBench photographs here")
def test_real_photographs_are_learnt(tmp_path: Path) -> None:
    run = train(
        tmp_path, DREAMBENCH / "dog", *SMALL, "subject.class_noun=dog", "train.steps=60",
        "checkpoint.every=60", "sample.every=0",
    )  # fmt: skip
    losses = [r["instance_loss"] for r in run.metrics]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert (run.folder / "bundle" / "model_index.json").is_file()
