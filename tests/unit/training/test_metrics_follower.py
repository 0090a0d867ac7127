import json
from pathlib import Path

import pytest

from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.metrics_follower import MetricsFollower


class CountingStore(Store):
    """Knows how many bytes were read from it."""

    num_bytes = 0

    def read(self, name: str) -> bytes:
        data = super().read(name)
        self.num_bytes += len(data)
        return data

    def read_from(self, name: str, start: int) -> bytes:
        data = super().read_from(name, start)
        self.num_bytes += len(data)
        return data


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> CountingStore:
    if request.param == "local":
        return CountingStore(str(tmp_path / "run"))
    return CountingStore(f"memory://{tmp_path.parent.name}-{tmp_path.name.strip(chr(91))}")


def write_steps(
    run: Store, num_steps: int, loss: float = 0.5, unfinished: str = "", lease: int = 1
) -> None:
    lines = [json.dumps({"step": s, "loss": loss}) + "\n" for s in range(1, num_steps + 1)]
    name = fence.file_name_with_lease(paths.METRICS, lease)
    run.write(name, ("".join(lines) + unfinished).encode())


def read_step(follower: MetricsFollower) -> int | None:
    latest = follower.read_latest_metrics()
    return latest["step"] if latest else None


def test_each_look_reads_what_is_new(run: CountingStore) -> None:
    follower = MetricsFollower(run)
    assert read_step(follower) is None
    write_steps(run, 1000)
    assert read_step(follower) == 1000
    run.num_bytes = 0
    assert read_step(follower) == 1000
    write_steps(run, 1002, unfinished='{"step": 1003, "lo')
    assert read_step(follower) == 1002
    assert run.num_bytes < 250
    write_steps(run, 1003)
    assert read_step(follower) == 1003


@pytest.mark.parametrize("num_steps", [4, 40])
def test_a_resumed_runs_lines_are_read_anew(run: CountingStore, num_steps: int) -> None:
    """It has dropped lines, and there may be more again by now."""
    follower = MetricsFollower(run)
    write_steps(run, 10)
    assert read_step(follower) == 10
    write_steps(run, num_steps, loss=0.25)
    assert follower.read_latest_metrics() == {"step": num_steps, "loss": 0.25}


def test_a_file_that_is_still_empty_has_no_step(run: CountingStore) -> None:
    run.write(paths.METRICS, b"")
    assert read_step(MetricsFollower(run)) is None


@pytest.mark.parametrize("is_older_removed", [False, True])
def test_another_holders_lines_are_followed(run: CountingStore, is_older_removed: bool) -> None:
    follower = MetricsFollower(run)
    write_steps(run, 10)
    assert read_step(follower) == 10
    write_steps(run, 8, loss=0.25, lease=2)
    if is_older_removed:
        run.remove_file(paths.METRICS)
    assert follower.read_latest_metrics() == {"step": 8, "loss": 0.25}
    write_steps(run, 12)
    assert read_step(follower) == 8
