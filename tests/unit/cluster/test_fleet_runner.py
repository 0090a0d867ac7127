"""A process that works through the queues of a storage; its trainings are played here."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster import fleet_runner
from cluster.fleet_queue import FleetEntry, TryEnd, run_queue
from cluster.fleet_runner import FleetRunner
from cluster.fleet_settings import FleetSettings
from cluster.stored_queue import StoredQueue
from dreambooth_ray.errors import CapacityError, ConfigError
from dreambooth_ray.storage.holder import make_process_holder
from dreambooth_ray.training.stop_request import is_stop_requested
from tests.unit.cluster.added_subjects import Added

LEASE_S = 0.4


class PlayedFleetWorker(FleetRunner):
    """Every training is done at once, but those of groups that end in `broken`."""

    broken = "none"

    def _connect_to_ray(self, config: object) -> None:
        pass

    def _run_group(self, group: str, queue: StoredQueue, first: FleetEntry) -> None:
        if group.endswith(self.broken):
            raise CapacityError("its slots would not fit")
        run_queue(queue, lambda e: e.id, lambda ids: next(iter(ids)), self.read_end, self._say)

    def read_end(self, _: str) -> TryEnd:
        return TryEnd("done")


@pytest.fixture
def added(tmp_path: Path, tiny_model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Added:
    monkeypatch.setattr(fleet_runner, "_LEASE_S", LEASE_S)
    monkeypatch.setattr(fleet_runner, "LOCAL_INTERVAL_S", 0.02)
    return Added(tmp_path, tiny_model, photos)


def make_worker(added: Added, retries: int = 0) -> PlayedFleetWorker:
    return PlayedFleetWorker(
        FleetSettings(added.storage, slots=4, retries=retries), added.lines.append
    )


def test_group_after_group_is_trained_until_none_has_work(added: Added) -> None:
    added.add({"id": "a"}, {"id": "wide", "overrides": ("train.lora.rank=32",)}, {"id": "b"})
    entries = make_worker(added).run()
    assert {entry.id: entry.state for entry in entries} == dict.fromkeys(["a", "b", "wide"], "done")
    assert make_worker(added).run() == []


def test_a_group_that_no_worker_can_train_keeps_no_other(added: Added) -> None:
    added.add({"id": "a"}, {"id": "wide", "overrides": ("train.lora.rank=32",)})
    worker = make_worker(added)
    worker.broken = "rank-00032"
    with pytest.raises(CapacityError, match="its slots would not fit"):
        worker.run()
    assert [ended.id for _, ended in added.store.list_ended()] == ["a"]
    assert added.waiting == ["wide"]


def test_what_may_be_a_dead_process_s_is_waited_for(added: Added) -> None:
    """Else whoever starts the queue again, on another host, would find nothing to do."""
    added.add({"id": "a"})
    ((group, _),) = added.store.list_unfinished_works("waiting")
    queue = added.store.open_queue(group)
    assert queue.claim_next(LEASE_S) is not None
    far = replace(make_process_holder(LEASE_S), host="far")
    claims = Path(added.storage) / "queue/fleet" / group / "claims/a/lease-0001.json"
    claims.write_bytes(far.as_json())
    (entry,) = make_worker(added).run()
    assert (entry.id, entry.state, entry.tries) == ("a", "done", 1)
    assert any(
        "looking whether processes live that train 1 subject" in line for line in added.lines
    )


def test_a_cancelled_subject_s_run_is_asked_to_stop(
    added: Added, monkeypatch: pytest.MonkeyPatch
) -> None:
    added.add({"id": "a"})
    run = Path(added.storage) / "runs/a"

    def cancel(worker: PlayedFleetWorker, _: str) -> TryEnd:
        assert added.store.cancel("a") == "asked"
        while not is_stop_requested(fleet_runner.Store(str(run))):
            pass
        return TryEnd("stopped", "as it was asked to")

    monkeypatch.setattr(PlayedFleetWorker, "read_end", cancel)
    (entry,) = make_worker(added).run()
    assert entry.state == "stopped"
    assert [ended.state for _, ended in added.store.list_ended()] == ["stopped"]


def test_a_storage_without_a_queue_is_refused(added: Added) -> None:
    with pytest.raises(ConfigError, match="holds no queue of subjects"):
        make_worker(added).run()


class Stopped(BaseException):
    """Ends who would stay for ever."""


class StandingFleetWorker(PlayedFleetWorker):
    """Stays until all that is expected was trained; each training takes as long as it is told."""

    def __init__(self, added: Added, num_expected: int, training_s: float) -> None:
        self.now_s, self.order = 0.0, list[str]()
        self._num_expected, self._training_s = num_expected, training_s
        self.meanwhile = lambda _: None  # type: ignore[assignment]
        settings = FleetSettings(added.storage, slots=1, stays=True)
        super().__init__(settings, added.lines.append, lambda: self.now_s)

    def _run_group(self, group: str, queue: StoredQueue, first: FleetEntry) -> None:
        super()._run_group(group, queue, first)
        if len(self.order) == self._num_expected:
            raise Stopped

    def read_end(self, name: str) -> TryEnd:
        self.order.append(name)
        self.now_s += self._training_s
        self.meanwhile(name)  # type: ignore[misc]
        return TryEnd("done")


def test_who_stays_trains_what_comes_later(added: Added) -> None:
    added.add({"id": "a"})
    worker = StandingFleetWorker(added, 2, 1.0)
    worker.meanwhile = lambda name: (
        name == "a"
        and added.add(  # type: ignore[assignment]
            {"id": "b", "overrides": ("train.lora.rank=32",)}
        )
    )
    with pytest.raises(Stopped):
        worker.run()
    assert worker.order == ["a", "b"]
    assert added.waiting == []


def test_a_group_that_never_ends_lets_others_have_their_turn(added: Added) -> None:
    wide = {"overrides": ("train.lora.rank=32",)}
    added.add(*({"id": f"a{k}"} for k in range(6)), {"id": "w", **wide})
    worker = StandingFleetWorker(added, 7, fleet_runner._TURN_S / 2)
    with pytest.raises(Stopped):
        worker.run()
    assert set(worker.order) == {"w", *(f"a{k}" for k in range(6))}
    # Two turns of half the length, and what was begun meanwhile.
    assert worker.order.index("w") <= 4


def test_who_stays_tries_a_failed_group_again_after_a_while(added: Added) -> None:
    added.add({"id": "a"})
    worker = StandingFleetWorker(added, 1, 1.0)
    worker.broken = "rank-00008"
    lines = added.lines

    def pass_time(_: float) -> None:
        worker.now_s += fleet_runner._FAILED_S / 2
        if worker.now_s > 3 * fleet_runner._FAILED_S:
            worker.broken = "none"

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("cluster.fleet_runner.time.sleep", pass_time)
        worker.run()
    assert worker.order == ["a"]
    assert 2 <= sum("its slots would not fit" in line for line in lines) <= 4
