"""Subjects of a fleet in slots of workers that exchange nothing: who gets the next, and what
becomes of a lost worker's.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from cluster.fleet_plan import FleetConfig
from cluster.fleet_queue import FleetEntry, FleetQueue, SubjectQueue, TryEnd, end_try
from cluster.slot_actor import WorkerLostError, start_ray_workers
from cluster.slot_plan import divide_slots, plan_slots
from dreambooth_ray import pipeline
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import CapacityError, DreamBoothError
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.runs import open_run
from dreambooth_ray.training.stop_request import clear_stop_request
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.slots.slot_worker import SubjectEvent


class SlotWorkerHandle(Protocol):
    """A worker as the fleet sees it."""

    num_slots: int

    @property
    def has_room(self) -> bool:
        """Whether its process has been started, ready or not."""

    def add(self, job: WorkerJob | None) -> None:
        """Hand in a run, of a worker that is ready; None: no more come."""

    def read_event(self) -> "SubjectEvent | None":
        """The next event, of a worker that `wait` gave; None at its end.

        raises: WorkerLostError; DreamBoothError, if it can't train any
        """

    def kill(self) -> None:
        """End a worker that has nothing to do."""


@dataclass
class _Worker:
    """A worker, its subjects by run id, and since when; num_taken: of its slots.

    is_ready: whether it has found room and loaded what it needs
    """

    handle: SlotWorkerHandle
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


class SlotFleet:
    """Hands the subjects of one group out, until none waits."""

    def __init__(
        self,
        queue: SubjectQueue,
        make_job: Callable[[FleetEntry], WorkerJob],
        start: Callable[[int], SlotWorkerHandle],
        wait: Callable[[list[SlotWorkerHandle]], SlotWorkerHandle | None],
        say: Callable[[str], None],
        cluster: ClusterConfig,
    ) -> None:
        """queue: of the group's subjects, with a place for each

        start: a worker of so many slots; wait: until one of them has an event, or for a while
        cluster: how many workers may be lost in a row without a step more in between, and how long
            room for one is waited for
        """
        self._queue, self._make_job, self._start, self._wait = queue, make_job, start, wait
        self._say, self._cluster = say, cluster
        self._workers: list[_Worker] = []
        self._steps: dict[str, int] = {}
        self._num_lost = 0
        self._had_room_s = time.monotonic()
        self.misfits: list[FleetEntry] = []

    def run(self, shares: list[int]) -> None:
        """shares: slots of each worker

        raises: DreamBoothError if workers are lost again and again, or can train none of them;
            CapacityError if there is room for none
        """
        try:
            self._workers = [_Worker(self._start(num_slots)) for num_slots in shares]
            self._had_room_s = time.monotonic()
            self._train()
        except BaseException:
            # They would go on with subjects that others are handed by now.
            for worker in self._workers:
                worker.handle.kill()
            raise
        for worker in self._workers:
            if worker.is_ready:
                worker.handle.add(None)
            else:
                worker.handle.kill()

    def _train(self) -> None:
        while not self._queue.is_over:
            self._hand_out()
            if self._queue.is_over:
                break
            handle = self._wait([worker.handle for worker in self._workers])
            if handle is None:
                self._check_room()
                continue
            worker = next(w for w in self._workers if w.handle is handle)
            try:
                event = handle.read_event()
                if event is None:
                    raise WorkerLostError("its worker has ended")
                self._note_event(worker, event)
            except WorkerLostError as error:
                self._replace(worker, error)

    def _check_room(self) -> None:
        """raises: CapacityError if no worker has found room in time; one is enough to go on"""
        now_s, wait_s = time.monotonic(), self._cluster.wait_s
        if any(worker.is_ready or worker.handle.has_room for worker in self._workers):
            self._had_room_s = now_s
        elif now_s - self._had_room_s > wait_s:
            raise CapacityError(
                f"none of {len(self._workers)} workers with slots could start within {wait_s:g} s: "
                f"each takes a CPU{' and a GPU' if self._cluster.gpus else ''}; start hosts, wait "
                "until others are done, or raise cluster.wait_s"
            )

    def _hand_out(self) -> None:
        """The next subjects to whichever worker has most room."""
        while True:
            worker = max(self._workers, key=lambda w: w.num_free)
            if worker.num_free <= 0:
                return
            entry = self._queue.next()
            if entry is None:
                return
            start_s = time.monotonic()
            try:
                job = self._make_job(entry)
            except DreamBoothError as error:  # of this subject alone
                seconds = time.monotonic() - start_s
                self._say(end_try(self._queue, entry, TryEnd.of_error(error), seconds))
                continue
            worker.entries[entry.id] = entry, start_s
            worker.num_taken += 1
            worker.handle.add(job)

    def _note_event(self, worker: _Worker, event: "SubjectEvent") -> None:
        if event.kind == "ready":
            worker.is_ready = True
            return
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
            self._say(f"{event.run_id}: {entry.state} {entry.note}".rstrip())
            return
        note = (
            f"at step {event.step}, as it was asked to" if event.kind == "stopped" else event.note
        )
        end = TryEnd(event.kind, note, event.is_permanent)
        self._say(end_try(self._queue, entry, end, seconds))
        if entry.state != "waiting":
            self._steps.pop(event.run_id, None)

    def _replace(self, worker: _Worker, error: WorkerLostError) -> None:
        """Its subjects wait again, none the worse for it, and another worker takes its place."""
        self._num_lost += 1
        if self._num_lost > self._cluster.max_failures:
            raise DreamBoothError(
                f"{error}, {self._num_lost} times without a step more in between; start the fleet "
                "again once the cause is mended"
            )
        self._say(f"a worker is lost ({error}); its {len(worker.entries)} subjects go to others")
        for entry, since_s in worker.entries.values():
            self._queue.put_back(entry, time.monotonic() - since_s)
        # What has failed may still be there, and hold the runs of its subjects.
        worker.handle.kill()
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
    by_id = {entry.id: entry for entry in entries}
    plan = plan_slots({subject_id: prepared[subject_id].config for subject_id in by_id})
    alone = [by_id[subject_id] for subject_id in plan.obstacles]
    for subject_id, obstacle in plan.obstacles.items():
        say(f"{subject_id}: is trained by itself, as {obstacle} can't share a batch")
    for group in plan.groups:
        # All now: who stops a run while it waits for a slot means this fleet.
        jobs = {name: make_slot_job(prepared[name]) for name in group.subject_ids}
        first_run = prepared[group.subject_ids[0]]
        cluster = first_run.config.cluster
        start, wait = start_ray_workers(jobs[group.subject_ids[0]], group.rank, cluster.gpus)
        if any(prepared[name].config.cluster.span.max > 1 for name in group.subject_ids):
            say("cluster.workers means nothing in slots: workers are as many as `parallel` says")
        group_entries = [by_id[subject_id] for subject_id in group.subject_ids]
        queue = FleetQueue(group_entries, len(group_entries), fleet.retries)
        slot_fleet = SlotFleet(queue, partial(_find_job, jobs), start, wait, say, cluster)
        shares = divide_slots(fleet.slots, fleet.parallel, len(group_entries))
        say(f"{len(group_entries)} subjects share batches of {shares} slots")
        slot_fleet.run(shares)
        alone += slot_fleet.misfits
    return alone


def _find_job(jobs: Mapping[str, WorkerJob], entry: FleetEntry) -> WorkerJob:
    return jobs[entry.id]


def make_model_job(prepared: PreparedRun) -> WorkerJob:
    """What a worker loads the model of, before it is handed any subject."""
    return pipeline.make_worker_job(prepared, open_run(prepared.config))


def make_slot_job(prepared: PreparedRun) -> WorkerJob:
    """What a worker is told of a subject, whose class images are there."""
    run = open_run(prepared.config)
    # Of an earlier time. Whoever stops the run from now on means this fleet.
    clear_stop_request(run)
    if prepared.config.prior.num_images:
        # Else the set might be collected as garbage.
        pipeline.note_prior_use(prepared, run)
    return pipeline.add_class_images(pipeline.make_worker_job(prepared, run), prepared)
