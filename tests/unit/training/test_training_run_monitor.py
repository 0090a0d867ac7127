import errno
import threading
from pathlib import Path

import pytest

from dreambooth_ray.config.machines import ClusterConfig, CountRange
from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import training_run_monitor
from dreambooth_ray.training.checkpoint.save import StopRequest
from dreambooth_ray.training.stop_request import request_stop
from dreambooth_ray.training.training_run_monitor import (
    MissingMachinesTimer,
    TrainingRunMonitor,
    describe_missing_machines,
)
from dreambooth_ray.training.worker_messages import post_message, read_new_messages


def test_what_is_missing_is_named() -> None:
    cluster = ClusterConfig(workers=CountRange(min=3, max=4))
    assert describe_missing_machines(cluster, {"CPU": 3.0}, 2) is None
    assert "at least 3 CPUs" in str(describe_missing_machines(cluster, {"CPU": 2.0}, 1))
    assert "GPUs" in str(
        describe_missing_machines(ClusterConfig(workers=1, gpus=True), {"CPU": 8.0}, 1)
    )


def test_a_wait_ends_when_nothing_comes_back() -> None:
    wait = MissingMachinesTimer(patience_s=10)
    assert not wait.has_run_out(True, now_s=0)
    assert not wait.has_run_out(False, now_s=9)
    assert not wait.has_run_out(True, now_s=11)
    assert wait.has_run_out(True, now_s=21)


def test_messages_are_read_once_and_in_order() -> None:
    run, read_names = Store("memory://notices"), set[str]()
    post_message(run, "one")
    post_message(run, "two")
    assert read_new_messages(run, read_names) == ["one", "two"]
    assert read_new_messages(run, read_names) == []


class MomentaryStore(Store):
    """Fails the first looks with each of these errors, then answers."""

    def __init__(self, uri: str, *errors: Exception) -> None:
        super().__init__(uri)
        self.errors = list(errors)
        self.was_asked_again = threading.Event()

    def names(self, folder: str = "") -> list[str]:
        self._fail_once()
        return super().names(folder)

    def exists(self, name: str) -> bool:
        self._fail_once()
        return super().exists(name)

    def _fail_once(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.was_asked_again.set()


ERRORS = (
    StorageError("access is denied"),
    OSError(errno.ESTALE, "stale file handle"),
    OSError(errno.ESTALE, "stale file handle"),
)


def test_errors_of_storage_end_no_reading_of_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run_monitor, "_INTERVAL_S", 0.01)
    monkeypatch.setattr(
        training_run_monitor.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 9}}]
    )
    run, lines = MomentaryStore(str(tmp_path)), list[str]()
    with TrainingRunMonitor(run, ClusterConfig(), lines.append, lambda: None):
        run.errors = list(ERRORS)
        run.was_asked_again.clear()
        post_message(run, "restart: attempt 2")
        assert run.was_asked_again.wait(60)
    warnings = [line for line in lines if line.startswith("warning: reading the workers' messages")]
    assert ["StorageError" in line or "OSError" in line for line in warnings] == [True, True]
    assert "restart: attempt 2" in lines


def test_errors_of_storage_end_no_watch_for_requests_to_stop(tmp_path: Path) -> None:
    run, lines = MomentaryStore(str(tmp_path), *ERRORS), list[str]()
    request_stop(run)
    stop_request = StopRequest(run, lines.append, interval_s=0.01)
    stop_request.start()
    assert stop_request.wait_for_stop_request(60)
    assert len(lines) == 2
