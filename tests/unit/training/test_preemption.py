import time
from pathlib import Path

import pytest
from ray.train import PreemptionInfo

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.preemption import PreemptionWatcher
from dreambooth_ray.training.worker_messages import read_new_messages
from tests.unit.training.fitted import Fitted


class Clock:
    """Seconds as the test has them."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def notice_of(*hosts: str, in_s: float | None = None) -> PreemptionInfo:
    deadline_ms = None if in_s is None else int((time.time() + in_s) * 1000)
    return PreemptionInfo(deadline_ms, {host: [0] for host in hosts})


def test_each_host_is_told_once_and_asked_for_every_few_seconds() -> None:
    clock, notices = Clock(), [None, notice_of("a", in_s=60.5), notice_of("a"), notice_of("a", "b")]
    notice = PreemptionWatcher(lambda: notices.pop(0), clock)
    assert not notice.is_check_due
    clock.now_s = 6.0
    assert notice.is_check_due
    assert notice.ask_ray_for_notice() is None
    assert not notice.is_check_due
    assert notice.ask_ray_for_notice() == "1 of the run's hosts will be taken away in 60 s"
    assert notice.ask_ray_for_notice() is None
    assert notice.ask_ray_for_notice() == "1 of the run's hosts will be taken away"


@pytest.mark.parametrize("read_every", [1, 3])
def test_a_notice_makes_a_checkpoint_of_that_step(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path, read_every: int
) -> None:
    """Not of the steps after it, though the notice stands."""
    clock, run = Clock(), Store(str(tmp_path / "run"))

    def read_info() -> PreemptionInfo | None:
        clock.now_s += 100.0  # it is asked whenever metrics are read
        return notice_of("spot", in_s=90.0) if clock.now_s > 200.0 else None

    preemption = PreemptionWatcher(read_info, clock)
    clock.now_s = 100.0
    Fitted(
        tiny_model, photos, priors, "train.steps=12", "checkpoint.every=100",
        track=run, keep=True, read_every=read_every, preemption=preemption,
    )  # fmt: skip
    # Asked after the first read, when there was none, and after the second.
    assert committed_steps(run) == [2 * read_every, 12]
    (message,) = read_new_messages(run, set())
    assert f"a checkpoint is saved after step {2 * read_every}" in message
