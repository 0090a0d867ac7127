"""How many workers there are, by what waits; the workers are played here."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.fleet_queue import FleetEntry
from cluster.worker_pool import PoolWorker, SlotWorkerHandle, WorkerBounds, WorkerPool
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import CapacityError, DreamBoothError
from dreambooth_ray.training.slots.slot_worker import SubjectEvent
from dreambooth_ray.training.worker_job import WorkerJob

IDLE_S, WAIT_S = 60.0, 900.0


class PlayedHandle:
    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.has_started = self.is_killed = self.is_closed = False

    def add(self, job: WorkerJob | None) -> None:
        self.is_closed = job is None

    def read_event(self) -> SubjectEvent | None:
        return None

    def kill(self) -> None:
        self.is_killed = True


class PlayedPool:
    """A pool whose clock stands still until it is set."""

    def __init__(self, bounds: WorkerBounds) -> None:
        self.now_s, self.num_waiting, self.num_counts = 0.0, 0, 0
        self.handles: list[PlayedHandle] = []
        self.lines: list[str] = []
        cluster = ClusterConfig(max_failures=1, wait_s=WAIT_S)
        self.pool = WorkerPool(self.start, bounds, cluster, self.lines.append, lambda: self.now_s)

    def start(self, num_slots: int) -> SlotWorkerHandle:
        self.handles.append(PlayedHandle(num_slots))
        return self.handles[-1]

    def count(self, limit: int) -> int:
        self.num_counts += 1
        return min(self.num_waiting, limit)

    def scale(self, *, is_over: bool = False) -> None:
        """As a fleet does: hand out what waits, then scale."""
        while self.num_waiting and (worker := self.pool.find_free_worker()) is not None:
            self.num_waiting -= 1
            self.pool.note_taken(worker, FleetEntry(f"s{len(worker.entries)}"), self.now_s)
        self.pool.scale(self.count, is_over=is_over)

    def make_ready(self) -> None:
        for worker in self.workers:
            worker.is_ready = True

    @property
    def workers(self) -> list[PoolWorker]:
        return [self.pool.find(handle) for handle in self.pool.handles]

    def finish(self, worker: PoolWorker) -> None:
        """All subjects of a worker."""
        for name in list(worker.entries):
            worker.num_taken -= 1
            self.pool.note_subject_gone(worker, name)


def test_workers_come_as_subjects_wait_and_go_when_they_are_idle() -> None:
    played = PlayedPool(WorkerBounds((4, 4, 4), 1, IDLE_S))
    played.num_waiting = 1
    played.scale()
    assert len(played.pool) == 1
    played.num_waiting = 7
    played.scale()
    # What those that start will take is not counted twice.
    played.scale()
    assert len(played.pool) == 2
    played.make_ready()
    played.num_waiting = 100
    played.scale()
    assert len(played.pool) == 3
    played.make_ready()
    played.num_waiting = 4
    played.scale()
    # The most there may be, so nobody has to be asked what waits.
    num_counts = played.num_counts
    played.scale()
    assert (len(played.pool), played.num_counts) == (3, num_counts)
    first, second, _ = played.workers
    played.now_s = 1000.0
    played.finish(first)
    played.finish(second)
    played.scale()
    played.now_s += IDLE_S - 1
    played.scale()
    assert len(played.pool) == 3
    played.now_s += 1
    played.scale()
    assert len(played.pool) == 1
    assert [handle.is_killed for handle in played.handles] == [True, True, False]
    # Their slots are there for others.
    played.num_waiting = 8
    played.scale()
    assert sum(handle.num_slots for handle in played.pool.handles) == 12


def test_each_worker_that_is_started_is_told_of_with_its_slots() -> None:
    played = PlayedPool(WorkerBounds((1, 2), 0, IDLE_S))
    played.num_waiting = 3
    played.scale()
    assert played.lines == [
        "a worker of 2 slots is started, of now 1", "a worker of 1 slot is started, of now 2",
    ]  # fmt: skip


def test_the_last_worker_stays_until_nothing_is_left_to_do() -> None:
    played = PlayedPool(WorkerBounds((2, 2), 0, IDLE_S))
    played.scale()
    played.now_s = 10 * IDLE_S
    played.scale()
    assert len(played.pool) == 1
    played.scale(is_over=True)
    assert len(played.pool) == 0


def test_a_worker_that_nobody_waits_for_any_more_need_not_start() -> None:
    played = PlayedPool(WorkerBounds((1, 1), 1, IDLE_S))
    played.num_waiting = 1
    played.scale()
    played.make_ready()
    played.scale()
    played.num_waiting = 1
    played.scale()
    assert len(played.pool) == 2
    played.num_waiting = 0
    played.finish(played.workers[0])
    played.now_s = IDLE_S
    played.scale()
    assert [handle.is_killed for handle in played.handles] == [False, True]


def test_subjects_are_packed_where_workers_may_leave_and_spread_where_they_stay() -> None:
    for bounds, expected in ((WorkerBounds((3, 3), 1, 0.0), [2, 0]), (None, [1, 1])):
        played = PlayedPool(bounds or WorkerBounds.fixed((3, 3)))
        played.num_waiting = 6
        played.scale()
        played.make_ready()
        played.num_waiting = 2
        played.scale()
        assert (
            sorted((len(w.entries) for w in played.workers), reverse=True)[:2]
            == (expected[: len(played.workers)])
        )


def test_room_is_waited_for_from_the_first_start_on() -> None:
    played = PlayedPool(WorkerBounds((1,), 0, IDLE_S))
    played.now_s = 2 * WAIT_S
    played.scale()
    played.pool.check_worker_started()
    played.now_s += WAIT_S + 1
    with pytest.raises(CapacityError, match=r"none of 1 worker .* within 900 s"):
        played.pool.check_worker_started()


def test_a_lost_worker_has_a_successor_with_as_many_slots() -> None:
    played = PlayedPool(WorkerBounds((3, 2), 1, IDLE_S))
    played.scale()
    lost = DreamBoothError("gone")
    played.pool.replace(played.workers[0], lost)
    assert [handle.num_slots for handle in played.handles] == [3, 3]
    with pytest.raises(DreamBoothError, match="gone, 2 times without a step more"):
        played.pool.replace(played.workers[0], lost)
    played.pool.reset_lost_count()
    played.pool.close()
    assert [handle.is_killed for handle in played.handles] == [True, True]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 40))
def test_needed_are_the_fewest_that_hold_all(shares: list[int], num_subjects: int) -> None:
    bounds = WorkerBounds(shares, 0, IDLE_S)
    num_needed, largest_first = bounds.count_needed(num_subjects), sorted(shares, reverse=True)
    holds_all = sum(largest_first[:num_needed]) >= num_subjects
    assert holds_all or num_needed == len(shares)
    assert num_needed == 0 or sum(largest_first[: num_needed - 1]) < num_subjects


Steps = st.lists(
    st.tuples(st.sampled_from(["wait", "ready", "finish", "later"]), st.integers(0, 9)), max_size=40
)


# The worker of one slot stays and the one of three has left: another subject wants that one back.
_LARGER_LEFT = [("wait", 4), ("ready", 0), *[("finish", 0)] * 3, ("later", 9), ("wait", 1)]


@example(steps=_LARGER_LEFT, shares=[1, 3], fewest=0)
@given(Steps, st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 4))
def test_workers_stay_within_their_bounds(
    steps: list[tuple[str, int]], shares: list[int], fewest: int
) -> None:
    fewest = min(fewest, len(shares))
    played = PlayedPool(WorkerBounds(shares, fewest, IDLE_S))
    for kind, number in steps:
        if kind == "wait":
            played.num_waiting += number
        elif kind == "later":
            played.now_s += 20.0 * number
        elif kind == "ready":
            played.make_ready()
        elif played.workers:
            played.finish(played.workers[number % len(played.workers)])
        busy = [worker.handle for worker in played.workers if worker.entries]
        played.scale()
        assert max(1, fewest) <= len(played.pool) <= len(shares)
        # Nobody who has subjects is ended.
        assert all(handle in played.pool.handles for handle in busy)
        if played.num_waiting and played.pool.find_free_worker() is None:
            taken = sum(worker.num_taken for worker in played.workers)
            slots = sum(handle.num_slots for handle in played.pool.handles)
            assert slots >= min(sum(shares), taken + played.num_waiting)
    assert sum(h.num_slots for h in played.pool.handles) <= sum(shares)
