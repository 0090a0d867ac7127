"""A fleet's workers with slots: as many as what waits takes, within bounds; and their loss."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from cluster.fleet_queue import FleetEntry
from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import CapacityError, DreamBoothError
from dreambooth_ray.storage.lease import Clock
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.slots.slot_worker import SubjectEvent


class SlotWorkerHandle(Protocol):
    """A worker as the fleet sees it."""

    num_slots: int

    @property
    def has_started(self) -> bool:
        """Whether its process has been started, ready or not."""

    def add(self, job: WorkerJob | None) -> None:
        """Hand in a run, of a worker that is ready; None: no more come."""

    def read_event(self) -> "SubjectEvent | None":
        """The next event, of a worker that `wait` gave; None at its end.

        raises: WorkerLostError; DreamBoothError, if it can't train any
        """

    def kill(self) -> None:
        """End a worker that has nothing to do."""


@dataclass(eq=False)
class PoolWorker:
    """A worker, its subjects by run id, and since when; num_taken: of its slots.

    is_ready: whether it has found room and loaded what it needs
    idle_since_s: since when it has had no subject
    """

    handle: SlotWorkerHandle
    idle_since_s: float
    entries: dict[str, tuple[FleetEntry, float]] = field(default_factory=dict)
    num_taken: int = 0
    trained: set[str] = field(default_factory=set)
    is_ready: bool = False

    @property
    def num_free(self) -> int:
        """Slots that a subject may be handed in for."""
        num_slots = self.handle.num_slots
        # As many again may be making their bundles. What takes longer than training is waited for.
        num_free = min(num_slots - self.num_taken, 2 * num_slots - len(self.entries))
        return num_free if self.is_ready else 0


@dataclass(frozen=True)
class WorkerBounds:
    """How many workers there may be.

    shares: slots of each where all are there; fewest: that stay though they have nothing to do
    idle_s: after which any other that has nothing to do leaves
    """

    shares: Sequence[int]
    fewest: int
    idle_s: float = math.inf

    @classmethod
    def fixed(cls, shares: Sequence[int]) -> "WorkerBounds":
        """All, from the beginning to the end."""
        return cls(shares, len(shares))

    @property
    def is_number_fixed(self) -> bool:
        """Whether all stay, whatever waits."""
        return self.fewest >= len(self.shares)

    def count_needed(self, num_subjects: int) -> int:
        """Fewest workers whose slots hold so many subjects at once; all where none do."""
        cumulative_slots = list(accumulate(sorted(self.shares, reverse=True), initial=0))
        return next(
            (k for k, slots in enumerate(cumulative_slots) if slots >= num_subjects),
            len(self.shares),
        )


class WorkerPool:
    """Starts workers as they are needed and ends those that no longer are."""

    def __init__(
        self,
        start: Callable[[int], SlotWorkerHandle],
        bounds: WorkerBounds,
        cluster: ClusterConfig,
        say: Callable[[str], None],
        clock: Clock = time.monotonic,
    ) -> None:
        """start: a worker of so many slots

        cluster: how many workers may be lost in a row without a step more in between, and how long
            room for one is waited for
        """
        self._start, self._bounds, self._cluster = start, bounds, cluster
        self._say, self._clock = say, clock
        self._free_shares = sorted(bounds.shares)
        self._workers: list[PoolWorker] = []
        self._num_lost, self._had_room_s = 0, clock()

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def handles(self) -> list[SlotWorkerHandle]:
        """Of all."""
        return [worker.handle for worker in self._workers]

    def find(self, handle: SlotWorkerHandle) -> PoolWorker:
        """The worker of a handle."""
        return next(worker for worker in self._workers if worker.handle is handle)

    def find_free_worker(self) -> PoolWorker | None:
        """The one to hand the next subject to, if any has a free slot.

        Where all stay, the one with most room. Else the one with least: others may leave.
        """
        free_workers = [worker for worker in self._workers if worker.num_free > 0]
        choose_worker = max if self._bounds.is_number_fixed else min
        return (
            choose_worker(free_workers, key=lambda worker: worker.num_free)
            if free_workers
            else None
        )

    def scale(self, count_waiting: Callable[[int], int], *, is_over: bool) -> None:
        """After subjects were handed out: start workers for those that wait, end idle ones.

        count_waiting: subjects that wait, up to so many; asked where workers might be started
        is_over: whether none waits or is being trained
        """
        num_needed_workers = self._bounds.fewest if is_over else max(1, self._bounds.fewest)
        if self.find_free_worker() is None and not is_over:
            num_needed_workers = max(num_needed_workers, self._count_needed(count_waiting))
        while len(self._workers) < num_needed_workers:
            self._start_worker(self._free_shares.pop())
        self._end_idle(num_needed_workers)

    def _count_needed(self, count_waiting: Callable[[int], int]) -> int:
        if not self._free_shares:
            return len(self._workers)
        num_taken = sum(worker.num_taken for worker in self._workers)
        num_subjects = num_taken + count_waiting(sum(self._bounds.shares))
        num_workers = len(self._workers)
        num_slots = sum(worker.handle.num_slots for worker in self._workers)
        if num_slots >= num_subjects:
            return self._bounds.count_needed(num_subjects)
        # Those that are there need not be the largest: the one that is idle leaves.
        for num_more_slots in reversed(self._free_shares):
            if num_slots < num_subjects:
                num_workers, num_slots = num_workers + 1, num_slots + num_more_slots
        return num_workers

    def _start_worker(self, num_slots: int) -> None:
        if not self._workers:
            self._had_room_s = self._clock()
        self._workers.append(PoolWorker(self._start(num_slots), self._clock()))
        if not self._bounds.is_number_fixed:
            slots_text = describe_count(num_slots, "slot")
            self._say(f"a worker of {slots_text} is started, of now {len(self._workers)}")

    def _end_idle(self, num_needed_workers: int) -> None:
        # First those that have not even started.
        for worker in sorted(self._workers, key=lambda worker: worker.is_ready):
            if len(self._workers) <= num_needed_workers:
                return
            idle_s = self._clock() - worker.idle_since_s
            if not worker.entries and idle_s >= self._bounds.idle_s:
                worker.handle.kill()
                self._workers.remove(worker)
                self._free_shares = sorted([*self._free_shares, worker.handle.num_slots])
                self._say(f"an idle worker is ended; {len(self._workers)} are left")

    def note_taken(self, worker: PoolWorker, entry: FleetEntry, since_s: float) -> None:
        """A subject goes into one of its slots."""
        worker.entries[entry.id] = entry, since_s
        worker.num_taken += 1

    def note_subject_gone(self, worker: PoolWorker, run_id: str) -> None:
        """A subject is over, or no longer this worker's."""
        del worker.entries[run_id]
        worker.trained.discard(run_id)
        worker.idle_since_s = self._clock()

    def reset_lost_count(self) -> None:
        """A subject was trained further: what was lost before was not in vain."""
        self._num_lost = 0

    def check_worker_started(self) -> None:
        """raises: CapacityError if no worker has found room in time; one is enough to go on"""
        now_s, wait_s = self._clock(), self._cluster.wait_s
        if any(worker.is_ready or worker.handle.has_started for worker in self._workers):
            self._had_room_s = now_s
        elif now_s - self._had_room_s > wait_s:
            workers_text = describe_count(len(self._workers), "worker")
            raise CapacityError(
                f"none of {workers_text} with slots could start within {wait_s:g} s: each takes a "
                f"CPU{' and a GPU' if self._cluster.gpus else ''}; start hosts, wait until others "
                "are done, or raise cluster.wait_s"
            )

    def replace(self, worker: PoolWorker, error: DreamBoothError) -> None:
        """Start another in the place of one that is lost.

        raises: DreamBoothError if workers are lost again and again
        """
        self._num_lost += 1
        if self._num_lost > self._cluster.max_failures:
            raise DreamBoothError(
                f"{error}, {self._num_lost} times without a step more in between; start the fleet "
                "again once the cause is mended"
            )
        # What has failed may still be there, and hold the runs of its subjects.
        worker.handle.kill()
        self._workers.remove(worker)
        self._workers.append(PoolWorker(self._start(worker.handle.num_slots), self._clock()))

    def kill(self) -> None:
        """End all: they would go on with subjects that others are handed by now."""
        for worker in self._workers:
            worker.handle.kill()

    def close(self) -> None:
        """No subject comes any more."""
        for worker in self._workers:
            if worker.is_ready:
                worker.handle.add(None)
            else:
                worker.handle.kill()
