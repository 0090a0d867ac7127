"""Subjects of a fleet in slots of workers that exchange nothing: who gets the next, and what
becomes of a lost worker's.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import ray

from cluster.fleet_plan import FleetConfig, FleetEntry, FleetQueue, SubjectQueue
from cluster.slot_actor import SlotActor
from cluster.slot_plan import divide_slots, plan_slots
from dreambooth_ray import pipeline
from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.runs import open_run
from dreambooth_ray.training.stop_request import clear_stop_request
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.slots.slot_worker import SubjectEvent


class WorkerLostError(DreamBoothError):
    """A worker's process or host is gone."""


class SlotWorkerHandle(Protocol):
    """A worker as the fleet sees it."""

    num_slots: int

    def add(self, job: WorkerJob | None) -> None:
        """Hand in a run; None: no more come."""

    def read_event(self) -> "SubjectEvent | None":
        """The next event, of a worker that `wait` gave; None at its end.

        raises: WorkerLostError; DreamBoothError, if it can't train any
        """


@dataclass
class _Worker:
    """A worker, its subjects by run id, and since when; num_taken: of its slots."""

    handle: SlotWorkerHandle
    entries: dict[str, tuple[FleetEntry, float]] = field(default_factory=dict)
    num_taken: int = 0
    trained: set[str] = field(default_factory=set)


class SlotFleet:
    """Hands the subjects of one group out, until none waits."""

    def __init__(
        self,
        queue: SubjectQueue,
        make_job: Callable[[FleetEntry], WorkerJob],
        start: Callable[[int], SlotWorkerHandle],
        wait: Callable[[list[SlotWorkerHandle]], SlotWorkerHandle | None],
        say: Callable[[str], None],
        max_failures: int,
    ) -> None:
        """queue: of the group's subjects, with a place for each

        start: a worker of so many slots; wait: until one of them has an event, or for a while
        max_failures: workers lost in a row without a step more in between
        """
        self._queue, self._make_job, self._start, self._wait = queue, make_job, start, wait
        self._say, self._max_failures = say, max_failures
        self._workers: list[_Worker] = []
        self._steps: dict[str, int] = {}
        self._num_lost = 0
        self.misfits: list[FleetEntry] = []

    def run(self, shares: list[int]) -> None:
        """shares: slots of each worker

        raises: DreamBoothError if workers are lost again and again, or can train none of them
        """
        self._workers = [_Worker(self._start(num_slots)) for num_slots in shares]
        while not self._queue.is_over:
            self._hand_out()
            if self._queue.is_over:
                break
            handle = self._wait([worker.handle for worker in self._workers])
            if handle is None:
                continue
            worker = next(w for w in self._workers if w.handle is handle)
            try:
                event = handle.read_event()
                if event is None:
                    raise WorkerLostError("its worker has ended")
                self._note_event(worker, event)
            except WorkerLostError as error:
                self._replace(worker, error)
        for worker in self._workers:
            worker.handle.add(None)

    def _hand_out(self) -> None:
        """The next subjects to whichever worker has most room."""
        while True:
            worker = max(self._workers, key=lambda w: w.handle.num_slots - w.num_taken)
            if worker.num_taken >= worker.handle.num_slots:
                return
            entry = self._queue.next()
            if entry is None:
                return
            worker.entries[entry.subject.id] = entry, time.monotonic()
            worker.num_taken += 1
            worker.handle.add(self._make_job(entry))

    def _note_event(self, worker: _Worker, event: "SubjectEvent") -> None:
        entry, since_s = worker.entries[event.run_id]
        if event.step > self._steps.get(event.run_id, 0):
            self._steps[event.run_id] = event.step
            self._num_lost = 0
        if event.kind == "joined":
            self._say(f"{event.run_id}: in a slot from step {event.step} on")
            return
        if event.run_id not in worker.trained:
            worker.num_taken -= 1
        if event.kind == "trained":
            worker.trained.add(event.run_id)
            return
        del worker.entries[event.run_id]
        worker.trained.discard(event.run_id)
        seconds = time.monotonic() - since_s
        if event.kind == "misfit":
            self._queue.withdraw(entry, seconds)
            self.misfits.append(entry)
        elif event.kind == "stopped":
            self._queue.stop(entry, f"at step {event.step}, as it was asked to", seconds)
        else:
            error = event.note if event.kind == "failed" else None
            self._queue.finish(entry, error, seconds, may_retry=not event.is_permanent)
        self._say(f"{event.run_id}: {entry.state} {entry.note}".rstrip())

    def _replace(self, worker: _Worker, error: WorkerLostError) -> None:
        """Its subjects wait again, none the worse for it, and another worker takes its place."""
        self._num_lost += 1
        if self._num_lost > self._max_failures:
            raise DreamBoothError(
                f"{error}, {self._num_lost} times without a step more in between; start the fleet "
                "again once the cause is mended"
            )
        self._say(f"a worker is lost ({error}); its {len(worker.entries)} subjects go to others")
        for entry, since_s in worker.entries.values():
            self._queue.put_back(entry, time.monotonic() - since_s)
        self._workers.remove(worker)
        self._workers.append(_Worker(self._start(worker.handle.num_slots)))


def train_in_slots(
    fleet: FleetConfig,
    entries: list[FleetEntry],
    prepared: Mapping[str, PreparedRun],
    say: Callable[[str], None],
) -> list[FleetEntry]:
    """Train subjects in slots, group by group; returns those that have to be trained by themselves.

    prepared: by subject's id, with photographs that every host can read
    """
    by_id = {entry.subject.id: entry for entry in entries}
    plan = plan_slots({subject_id: prepared[subject_id].config for subject_id in by_id})
    alone = [by_id[subject_id] for subject_id in plan.obstacles]
    for subject_id, obstacle in plan.obstacles.items():
        say(f"{subject_id}: is trained by itself, as {obstacle} can't share a batch")
    for group in plan.groups:
        jobs = {name: make_slot_job(prepared[name]) for name in group.subject_ids}
        first_id = group.subject_ids[0]
        cluster = prepared[first_id].config.cluster
        start, wait = start_ray_workers(jobs[first_id], group.rank, cluster.gpus)
        group_entries = [by_id[subject_id] for subject_id in group.subject_ids]
        queue = FleetQueue(group_entries, len(group_entries), fleet.retries)
        find_job = partial(_find_job, jobs)
        slot_fleet = SlotFleet(queue, find_job, start, wait, say, cluster.max_failures)
        shares = divide_slots(fleet.slots, fleet.parallel, len(group_entries))
        say(f"{len(group_entries)} subjects share batches of {shares} slots")
        slot_fleet.run(shares)
        alone += slot_fleet.misfits
    return alone


def _find_job(jobs: Mapping[str, WorkerJob], entry: FleetEntry) -> WorkerJob:
    return jobs[entry.subject.id]


def make_slot_job(prepared: PreparedRun) -> WorkerJob:
    """What a worker is told of a subject, whose class images are there."""
    run = open_run(prepared.config)
    # Of an earlier time. Whoever stops the run from now on means this fleet.
    clear_stop_request(run)
    if prepared.config.prior.num_images:
        # Else the set might be collected as garbage.
        pipeline.note_prior_use(prepared, run)
    return pipeline.add_class_images(pipeline.make_worker_job(prepared, run), prepared)


class _RayWorker:
    """A SlotActor."""

    def __init__(self, job: WorkerJob, num_slots: int, rank: int, gpu: bool) -> None:
        self.num_slots = num_slots
        actor_class = ray.remote(SlotActor).options(
            num_cpus=1,
            num_gpus=1 if gpu else 0,
            # One trains, and one takes in what is handed in.
            max_concurrency=2,
            runtime_env=worker_environment(),
        )
        self._actor = actor_class.remote(num_slots, rank)
        self.events = self._actor.run.options(num_returns="streaming").remote(job, gpu)

    def add(self, job: WorkerJob | None) -> None:
        self._actor.add.remote(job)

    def read_event(self) -> "SubjectEvent | None":
        try:
            event: SubjectEvent = ray.get(next(self.events))
        except StopIteration:
            return None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, DreamBoothError):
                raise cause from None
            raise
        except ray.exceptions.RayError as error:
            raise WorkerLostError(f"{type(error).__name__}: its process or host is gone") from error
        return event


def start_ray_workers(
    job: WorkerJob, rank: int, gpu: bool, wait_s: float | None = None
) -> tuple[Callable[[int], SlotWorkerHandle], Callable[[list[Any]], Any]]:
    """`start` and `wait` of a SlotFleet, by Ray actors.

    job: any of the group; wait_s: how long at most, None for however long it takes
    """

    def start(num_slots: int) -> SlotWorkerHandle:
        return _RayWorker(job, num_slots, rank, gpu)

    def wait(workers: list[_RayWorker]) -> _RayWorker | None:
        streams = [worker.events for worker in workers]
        ready, _ = ray.wait(streams, num_returns=1, timeout=wait_s)
        return next((worker for worker in workers if ready and worker.events is ready[0]), None)

    return start, wait
