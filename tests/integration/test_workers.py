"""The same run on one, two and four workers, and taken up again on fewer or more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.metrics_log import read_metrics
from tests.integration.conftest import SMALL, Background, dreambooth, kill_tree, train

WORDS = [*SMALL, "train.batch_size=4", "train.steps=40", "checkpoint.every=10", "sample.every=0"]
STRATEGIES = {
    "ddp": ["train.strategy=ddp"],
    "fsdp2": ["train.strategy=fsdp2"],
    **{
        f"zero{stage}": ["train.strategy=deepspeed", f"train.deepspeed.stage={stage}"]
        for stage in (1, 2, 3)
    },
    "zero2-offload": [
        "train.strategy=deepspeed", "train.deepspeed.stage=2", "train.deepspeed.offload=true",
    ],
}  # fmt: skip


def apart(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """The largest difference of two loss curves."""
    pairs = zip(one, other, strict=True)
    return max(abs(a["loss"] - b["loss"]) for a, b in pairs)


@pytest.mark.fault
def test_the_number_of_workers_changes_no_curve(photos: Path, storage: str, tmp_path: Path) -> None:
    curves = {
        workers: train(tmp_path, photos, storage, *WORDS, f"cluster.workers={workers}").metrics
        for workers in (1, 2, 4)
    }
    for workers in (2, 4):
        worst = apart(curves[1], curves[workers])
        print(f"{workers} workers against one: {worst:.1e}")
        assert worst <= 1e-4


@pytest.fixture(scope="module")
def one_worker(
    photos: Path, storage: str, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The curve of one worker without a strategy to speak of."""
    folder = tmp_path_factory.mktemp("one")
    return train(folder, photos, storage, *WORDS, "cluster.workers=1").metrics


@pytest.mark.fault
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [*((name, 2, 1) for name in STRATEGIES), ("fsdp2", 1, 2), ("zero3", 1, 2)],
)
def test_a_run_is_taken_up_by_another_number_of_workers(
    name: str,
    before: int,
    after: int,
    one_worker: list[dict[str, Any]],
    in_background: Callable[..., Background],
    tmp_path: Path,
) -> None:
    run = in_background(*WORDS, *STRATEGIES[name], f"cluster.workers={before}")
    store = Store(str(run.folder))
    run.wait_until(lambda: committed_steps(store) != [], "a checkpoint")
    kill_tree(run.process)
    at = committed_steps(store)[-1]
    done = dreambooth("resume", store.uri, f"cluster.workers={after}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert is_finished(store)
    worst = apart(one_worker, read_metrics(store))
    print(f"{name}: {before} workers until step {at}, then {after}: {worst:.1e}")
    assert worst <= 1e-4
