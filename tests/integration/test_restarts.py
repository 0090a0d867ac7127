"""Workers that die and steps that raise: what is tried again, and what the person is told."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.metrics_log import RESTARTS
from dreambooth_ray.training.restarts import read_restarts
from tests.integration.conftest import (
    SMALL,
    Background,
    Run,
    dreambooth,
    kill_tree,
    start_dreambooth,
    train,
)
from tests.integration.planting import plant

STEP = "dreambooth_ray.training.module"
RAISING = """
step_of = DreamBoothModule.training_step
def training_step(self, batch, batch_idx):
    if batch.step + 1 == 7:
        raise KeyError(f"planted at {id(batch)}")
    return step_of(self, batch, batch_idx)
DreamBoothModule.training_step = training_step
"""
ONE_WORKER = (*SMALL, "cluster.workers=1", "sample.every=0")


@pytest.mark.fault
def test_a_step_that_raises_ends_the_run_at_the_second_time(
    photos: Path, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in plant(tmp_path / "site", STEP, RAISING).items():
        monkeypatch.setenv(name, value)
    done = dreambooth(
        "train", "toy-robot.yaml", f"subject.photos={photos}", storage, "run_id=raising",
        *ONE_WORKER, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "after 1 restart: KeyError: 'planted at" in last
    assert "restart: attempt 2 goes on from step 5, because KeyError" in done.stderr
    run = Store(storage.removeprefix("storage.uri=")).sub("runs/raising")
    assert [(r.attempt, r.step) for r in read_restarts(run)] == [(2, 5)]


OUT_OF_MEMORY = """
import torch
step_of = DreamBoothModule.training_step
def training_step(self, batch, batch_idx):
    if batch.step + 1 == 7:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. (planted)")
    return step_of(self, batch, batch_idx)
DreamBoothModule.training_step = training_step
"""


@pytest.mark.fault
def test_out_of_memory_ends_the_run_at_once_with_what_would_fit(
    photos: Path, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in plant(tmp_path / "site", STEP, OUT_OF_MEMORY).items():
        monkeypatch.setenv(name, value)
    done = dreambooth(
        "train", "toy-robot.yaml", f"subject.photos={photos}", storage, "run_id=too-large",
        *SMALL, "cluster.workers=2", "sample.every=0", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "ran out of memory (CUDA out of memory. Tried to allocate 2.00 GiB. (planted))" in last
    assert "GiB were predicted; it would need" in last
    assert " GiB with train." in last
    assert done.stderr.count("it would need") == 1
    assert "restart" not in done.stderr
    run = Store(storage.removeprefix("storage.uri=")).sub("runs/too-large")
    assert read_restarts(run) == []
    assert committed_steps(run) == [5]


def change_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture(scope="module")
def finished(photos: Path, storage: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(
        tmp_path_factory.mktemp("finished"), photos, storage, *ONE_WORKER, "run_id=damaged"
    )


@pytest.mark.fault
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state_dict.safetensors", change_last_byte),
        ("state.ckpt", cut_off),
        ("state.ckpt", Path.unlink),
    ],
    ids=["weights changed", "optimizer cut off", "optimizer gone"],
)
def test_a_damaged_last_checkpoint_is_trained_again(
    finished: Run, tmp_path: Path, file: str, damage: Callable[[Path], object]
) -> None:
    """Weights, which an export reads, by any byte; the rest, which it does not, by its size."""
    run = finished
    store, curve = Store(str(run.folder)), run.curve
    bundle = (run.folder / "bundle" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    store.remove(f"{paths.BUNDLE}/manifest.json")
    damage(next((run.folder / "checkpoints").glob(f"step-00000016-*/{file}")))
    done = dreambooth("resume", store.uri, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING: the checkpoint of step 16 is damaged" in done.stderr
    assert run.curve == curve
    again = run.folder / "bundle" / "unet" / "diffusion_pytorch_model.safetensors"
    assert again.read_bytes() == bundle


LONG = [
    "train.method=lora", "train.text_encoder=false", "train.batch_size=1", "train.steps=350",
    "cluster.workers=1", "prior.count=24", "sample.every=0", "checkpoint.every=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def long_run(photos: Path, storage: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("long"), photos, storage, *LONG)


@pytest.mark.fault
@pytest.mark.parametrize("kills", [(1,), (175,), (350,), (1, 175, 350)], ids=str)
def test_a_worker_killed_at_any_step_is_said_and_changes_no_number(
    kills: tuple[int, ...],
    long_run: Run,
    in_background: Callable[..., Background],
) -> None:
    run = in_background(*LONG)
    for step in kills:
        run.wait_for_step(step)
        before = run.train_workers()
        for worker in before:
            worker.kill()
        psutil.wait_procs(before, timeout=30)
        # The last step's checkpoint may have been committed before the kill.
        run.process.poll()
    _, stderr = run.process.communicate(timeout=300)
    assert run.process.returncode == 0, stderr
    found, store = Run(run.folder), Store(str(run.folder))
    assert found.curve == long_run.curve
    restarts = read_restarts(store)
    print(kills, [(r.step, r.cause) for r in restarts])
    assert len(restarts) in (len(kills), len(kills) - (350 in kills))
    assert stderr.count("restart: attempt") == len(restarts)
    if len(restarts):
        assert found.metrics[-1][RESTARTS] == len(restarts)


@pytest.mark.fault
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_under_tensorboard_costs_its_own_values_alone(
    long_run: Run, photos: Path, storage: str, tmp_path: Path
) -> None:
    folder = Path(storage.removeprefix("storage.uri=")) / "runs" / "full-disk" / "tensorboard"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        process = start_dreambooth(
            "train", "toy-robot.yaml", f"subject.photos={photos}", storage, "run_id=full-disk",
            *LONG, cwd=tmp_path,
        )  # fmt: skip
        _, stderr = process.communicate(timeout=300)
        kill_tree(process)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert process.returncode == 0, stderr
    run = Run(folder.parent)
    assert run.curve == long_run.curve
    assert committed_steps(Store(str(run.folder)))[-1] == 350
    said = [line for line in stderr.splitlines() if "logger tensorboard failed" in line]
    assert len(said) == 1
    assert "No space left" in said[0]
