"""Subjects handed to workers that are played here: no Ray, no training."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet_queue import FleetEntry, FleetQueue
from cluster.slot_actor import WorkerLostError
from cluster.slot_fleet import SlotFleet
from cluster.worker_pool import SlotWorkerHandle, WorkerBounds
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import CapacityError, DataError, DreamBoothError
from dreambooth_ray.training.slots.slot_worker import SubjectEvent
from dreambooth_ray.training.worker_job import WorkerJob


class PlayedWorker:
    """Ends subjects in the order in which they came, as `plays` says of each try."""

    def __init__(self, num_slots: int, plays: dict[str, list[str]], has_started: bool) -> None:
        self.num_slots, self._plays = num_slots, plays
        self.num_taken = self.most_taken = 0
        ready = [SubjectEvent("", "ready")] if has_started else []
        self._events: deque[SubjectEvent | WorkerLostError] = deque(ready)
        self.has_started = has_started
        # They come last: bundles take their time.
        self._ends: deque[SubjectEvent] = deque()
        self.num_held = self.most_held = 0
        self.is_closed = self.is_killed = False

    def kill(self) -> None:
        self.is_killed = True

    def add(self, job: WorkerJob | None) -> None:
        assert self.has_started
        if job is None:
            self.is_closed = True
            return
        self.num_held += 1
        self.most_held = max(self.most_held, self.num_held)
        self.num_taken += 1
        self.most_taken = max(self.most_taken, self.num_taken)
        name = job.run_uri
        play = self._plays[name].pop(0) if self._plays.get(name) else "done"
        self._events.append(SubjectEvent(name, "joined"))
        if play == "lost":
            self._events.append(WorkerLostError("gone"))
            return
        if play != "refused":
            self._events.append(SubjectEvent(name, "trained", 5))
        kinds = {"broken": "failed", "refused": "failed", "permanent": "failed"}
        is_permanent = play == "permanent"
        note = play if play in kinds else ""
        end = SubjectEvent(name, kinds.get(play, play), 5, note, is_permanent)  # type: ignore[arg-type]
        self._ends.append(end)

    @property
    def has_event(self) -> bool:
        return bool(self._events or self._ends)

    def read_event(self) -> SubjectEvent | None:
        event = (self._events or self._ends).popleft()
        if isinstance(event, WorkerLostError):
            raise event
        if event.kind == "trained" or (event.kind == "failed" and event.note == "refused"):
            self.num_taken -= 1
        self.num_held -= event.kind in ("done", "stopped", "failed", "misfit")
        return event


class Played:
    def __init__(
        self, names: list[str], retries: int, room: tuple[bool, ...] = (), **plays: list[str]
    ) -> None:
        """room: whether there is some for each worker that is started; if not said, there is"""
        self.entries = [FleetEntry(name) for name in names]
        self.workers: list[PlayedWorker] = []
        self.lines: list[str] = []
        self.queue = FleetQueue(list(self.entries), len(names), retries)
        rooms = iter(room)

        def make_job(entry: FleetEntry) -> WorkerJob:
            if plays.get(entry.id) == ["no job"]:
                raise DataError("its class images can't be drawn")
            return WorkerJob("", entry.id, "")

        def start(num_slots: int) -> SlotWorkerHandle:
            self.workers.append(PlayedWorker(num_slots, plays, next(rooms, True)))
            return self.workers[-1]

        def wait(handles: list[SlotWorkerHandle]) -> SlotWorkerHandle | None:
            workers = (h for h in handles if isinstance(h, PlayedWorker) and h.has_event)
            return next(workers, None)

        cluster = ClusterConfig(max_failures=2, wait_s=1e-9)
        self.fleet = SlotFleet(self.queue, make_job, start, wait, self.lines.append, cluster)

    @property
    def states(self) -> dict[str, str]:
        return {entry.id: entry.state for entry in self.entries}


def test_each_subject_ends_as_its_worker_says() -> None:
    played = Played(
        ["a", "b", "c", "d", "e"], 1,
        b=["stopped"], c=["permanent"], d=["broken"], e=["refused", "broken"],
    )  # fmt: skip
    played.fleet.run(WorkerBounds.fixed([2]))
    assert played.states == {
        "a": "done", "b": "stopped", "c": "failed", "d": "done", "e": "failed",
    }  # fmt: skip
    tries = {entry.id: entry.tries for entry in played.entries}
    assert tries == {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2}
    assert "step 5" in played.entries[1].note
    assert [worker.is_closed for worker in played.workers] == [True]


def test_a_misfit_waits_for_being_trained_by_itself() -> None:
    played = Played(["a", "b"], 0, a=["misfit"])
    played.fleet.run(WorkerBounds.fixed([2]))
    assert played.states == {"a": "waiting", "b": "done"}
    assert played.fleet.misfits == [played.entries[0]]
    assert played.entries[0].tries == 0


def test_a_lost_workers_subjects_go_to_others_and_are_none_the_worse() -> None:
    played = Played(["a", "b", "c", "d"], 0, b=["lost"])
    played.fleet.run(WorkerBounds.fixed([2, 1]))
    assert set(played.states.values()) == {"done"}
    assert [worker.num_slots for worker in played.workers] == [2, 1, 2]
    assert {entry.tries for entry in played.entries} == {1}
    assert any("a worker is lost" in line for line in played.lines)


def test_workers_that_are_lost_again_and_again_end_the_fleet() -> None:
    played = Played(["a"], 0, a=["lost"] * 9)
    with pytest.raises(DreamBoothError, match="3 times without a step more"):
        played.fleet.run(WorkerBounds.fixed([1]))
    assert len(played.workers) == 3
    assert played.lines[1] == "a worker is lost (gone); others take over its 1 subject"
    # None goes on with what others may be handed.
    assert all(worker.is_killed for worker in played.workers)


def test_nobody_is_handed_to_a_worker_that_finds_no_room() -> None:
    played = Played(["a", "b", "c"], 0, room=(False, True))
    played.fleet.run(WorkerBounds.fixed([2, 2]))
    assert set(played.states.values()) == {"done"}
    assert [worker.is_killed for worker in played.workers] == [True, False]
    assert [worker.is_closed for worker in played.workers] == [False, True]


def test_a_lost_workers_subjects_do_not_wait_for_another_host() -> None:
    played = Played(["a", "b", "c", "d"], 0, room=(True, True, False), b=["lost"])
    played.fleet.run(WorkerBounds.fixed([2, 1]))
    assert set(played.states.values()) == {"done"}


def test_where_no_worker_finds_room_the_fleet_ends() -> None:
    played = Played(["a"], 0, room=(False, False))
    with pytest.raises(CapacityError, match=r"none of 2 workers .* raise cluster\.wait_s"):
        played.fleet.run(WorkerBounds.fixed([1, 1]))
    assert played.states == {"a": "waiting"}


def test_a_worker_that_takes_long_to_load_is_waited_for() -> None:
    played = Played(["a"], 0, room=(False,))
    num_looks = 0

    def load_slowly(handles: list[SlotWorkerHandle]) -> SlotWorkerHandle | None:
        nonlocal num_looks
        (worker,) = played.workers
        worker.has_started = True
        num_looks += 1
        if num_looks == 3:
            worker._events.append(SubjectEvent("", "ready"))
        return worker if worker.has_event else None

    played.fleet._wait = load_slowly
    played.fleet.run(WorkerBounds.fixed([1]))
    assert played.states == {"a": "done"}


def test_a_subject_that_nobody_can_be_told_of_ends_alone() -> None:
    played = Played(["a", "b", "c"], 2, b=["no job"])
    played.fleet.run(WorkerBounds.fixed([2]))
    assert played.states == {"a": "done", "b": "failed", "c": "done"}
    assert "class images" in played.entries[1].note


Plays = st.lists(st.sampled_from(["done", "broken", "refused", "stopped"]), max_size=3)


@given(
    st.lists(Plays, min_size=1, max_size=12), st.lists(st.integers(1, 4), min_size=1, max_size=3)
)
def test_no_slot_has_two_and_every_subject_ends(plays: list[list[str]], shares: list[int]) -> None:
    names = [f"s{number}" for number in range(len(plays))]
    played = Played(names, 5, **dict(zip(names, plays, strict=True)))
    played.fleet.run(WorkerBounds.fixed(shares))
    assert set(played.states.values()) <= {"done", "stopped"}
    assert all(worker.most_taken <= worker.num_slots for worker in played.workers)
    assert all(worker.most_held <= 2 * worker.num_slots for worker in played.workers)
