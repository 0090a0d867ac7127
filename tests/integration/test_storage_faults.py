"""Runs in object storage (SeaweedFS) that are disturbed, for every strategy."""

import hashlib
import json
import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.store import Store, use_storage_options
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.metrics_log import read_metrics
from tests.integration.conftest import (
    SMALL,
    Background,
    dreambooth,
    kill_tree,
    read_curve,
    start_dreambooth,
)
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at

STRATEGIES = {
    "ddp": ["train.strategy=ddp"],
    "fsdp2": ["train.strategy=fsdp2"],
    **{
        f"zero{stage}": ["train.strategy=deepspeed", f"train.deepspeed.stage={stage}"]
        for stage in (1, 2, 3)
    },
}


@pytest.fixture
def bucket(seaweed: Seaweed) -> Iterator[str]:
    with pointed_at(seaweed.environment):
        yield seaweed.make_bucket("runs")


def train(bucket: str, photos: Path, cwd: Path, *overrides: str) -> tuple[Background, Store]:
    """Started in the background, on two workers."""
    run_id = uuid.uuid4().hex
    process = start_dreambooth(
        "train", "toy-robot.yaml", f"subject.photos={photos}", f"storage.uri={bucket}",
        f"run_id={run_id}", *SMALL, "sample.every=0", *overrides, cwd=cwd,
    )  # fmt: skip
    return Background(process, cwd / "none"), Store(f"{bucket}/runs/{run_id}")


def finished(run: Background) -> None:
    _, errors = run.process.communicate(timeout=500)
    assert run.process.returncode == 0, errors


def outcome(run: Store) -> tuple[list[dict[str, Any]], str]:
    """The loss curve, and the hash of the final weights."""
    files = json.loads(run.read(f"{paths.BUNDLE}/{manifest.MANIFEST}"))["files"]
    hashes = [f["sha256"] for f in files if f["name"].startswith("unet/")]
    return read_curve(run), hashlib.sha256("".join(hashes).encode()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed_by_strategy() -> dict[str, tuple[list[dict[str, Any]], str]]:
    """Outcome of the undisturbed run of each strategy, once one has asked for it."""
    return {}


def kill_one(run: Background, store: Store, after: int) -> None:
    """SIGKILL a random worker at a random moment once the checkpoint of step `after` is there."""
    run.wait_until(lambda: (committed_steps(store) or [0])[-1] >= after, f"checkpoint {after}")
    run.wait_until(lambda: len(run.train_workers()) == 2, "two workers")
    time.sleep(random.uniform(0, 1))  # where in the steps that follow it strikes
    victims = run.train_workers()
    assert victims, "the workers ended before one of them could be killed"
    random.choice(victims).kill()


@pytest.mark.fault
@pytest.mark.parametrize("kills", [1, 3])
@pytest.mark.parametrize("name", STRATEGIES)
def test_killed_workers_change_no_number(
    name: str,
    kills: int,
    bucket: str,
    photos: Path,
    tmp_path: Path,
    undisturbed_by_strategy: dict[str, tuple[list[dict[str, Any]], str]],
) -> None:
    words = [*STRATEGIES[name], "train.steps=40", "checkpoint.every=10"]
    if name not in undisturbed_by_strategy:
        calm, calm_run = train(bucket, photos, tmp_path, *words)
        finished(calm)
        undisturbed_by_strategy[name] = outcome(calm_run)
    run, store = train(bucket, photos, tmp_path, *words)
    at = sorted(random.sample([10, 20, 30], kills))
    try:
        for after in at:
            kill_one(run, store, after)
        finished(run)
    finally:
        kill_tree(run.process)
    assert outcome(store) == undisturbed_by_strategy[name], f"killed after {at}"
    steps = committed_steps(store)
    assert steps[-1] == 40
    assert not any(manifest.find_damage(store, find_checkpoint(store, s).name) for s in steps)


@pytest.mark.fault
def test_a_server_away_for_a_minute_loses_nothing(
    seaweed: Seaweed, bucket: str, photos: Path, tmp_path: Path
) -> None:
    calm, calm_run = train(bucket, photos, tmp_path)
    finished(calm)
    run, store = train(bucket, photos, tmp_path)
    run.wait_until(lambda: len(read_metrics(store)) >= 4, "step 4")
    seaweed.kill()
    back = threading.Timer(60, seaweed.start)
    back.start()
    try:
        finished(run)
    finally:
        back.join()
        kill_tree(run.process)
    assert outcome(store) == outcome(calm_run)


@pytest.mark.fault
def test_a_run_in_a_bucket_is_resumed_and_drawn_from(
    bucket: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    run, store = train(bucket, photos, tmp_path)
    run.wait_until(lambda: committed_steps(store) != [], "a checkpoint")
    kill_tree(run.process)
    done = dreambooth("resume", store.uri, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = dreambooth(
        "generate", store.uri, "--prompt", "a sks robot", "--num-inference-steps", "2", cwd=tmp_path
    )
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / drawn.stdout.splitlines()[0]).is_file()


@pytest.mark.fault
def test_sigterm_saves_before_it_ends(bucket: str, photos: Path, tmp_path: Path) -> None:
    run, store = train(bucket, photos, tmp_path, "checkpoint.every=1000", "train.steps=2000")
    try:
        run.wait_until(lambda: len(read_metrics(store)) >= 4, "step 4")
        run.process.terminate()
        _, errors = run.process.communicate(timeout=120)
    finally:
        kill_tree(run.process)
    assert run.process.returncode == 1
    assert "stopped by SIGTERM" in errors
    step = committed_steps(store)[-1]
    assert len(read_metrics(store)) == step < 2000


@pytest.mark.fault
@pytest.mark.parametrize("case", ["keys", "bucket", "read-only", "endpoint"])
def test_storage_that_can_not_work_is_refused_in_a_line(
    case: str, seaweed: Seaweed, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "keys": seaweed.options("wrong", "wrong"),
        "bucket": seaweed.options(seaweed.writer_key, seaweed.writer_secret),
        "read-only": seaweed.options(seaweed.reader_key, seaweed.reader_secret),
        "endpoint": {**seaweed.options(), "endpoint_url": "http://127.0.0.1:9"},
    }[case]
    monkeypatch.setenv("FSSPEC_S3", "{}")  # put back afterwards
    use_storage_options("s3://x", options)
    try:
        with pytest.raises(StorageError) as error:
            Store("s3://nosuch/x" if case == "bucket" else bucket).check_writable()
    finally:
        use_storage_options("s3://x", seaweed.options())
    text = str(error.value)
    assert text.startswith("storage s3://")
    assert "\n" not in text
    assert not any(str(options[k]) in text for k in ("secret",))
