"""Subjects of a fleet in slots of workers that exchange nothing: who gets the next, and what
becomes of a lost worker's.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cluster.fleet_plan import FleetConfig
from cluster.fleet_queue import FleetEntry, FleetQueue, SubjectQueue, TryEnd, end_try
from cluster.shared_batch_plan import divide_slots_among_workers, group_subjects_for_shared_batches
from cluster.slot_actor import WorkerLostError, make_ray_worker_functions
from cluster.worker_pool import PoolWorker, SlotWorkerHandle, WorkerBounds, WorkerPool
from dreambooth_ray import pipeline
from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.runs import open_run
from dreambooth_ray.training.stop_request import clear_stop_request
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.slots.slot_worker import SubjectEvent


@dataclass(frozen=True)
class QueueDemand:
    """What of a queue decides how many workers there are.

    count: subjects that wait, up to so many; is_expected: whether more may come once none waits
    """

    count: Callable[[int], int] = lambda _: 0
    is_expected: Callable[[], bool] = lambda: False


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
        awaited: QueueDemand = QueueDemand(),
    ) -> None:
        """queue: of the group's subjects, with a place for each

        start: a worker of so many slots; wait: until one of them has an event, or for a while
        cluster: of a `WorkerPool`
        """
        self._queue, self._make_job, self._start, self._wait = queue, make_job, start, wait
        self._say, self._cluster, self._awaited = say, cluster, awaited
        self._steps: dict[str, int] = {}
        self.misfits: list[FleetEntry] = []

    def run(self, bounds: WorkerBounds) -> None:
        """Until the queue is over and no more is expected, or no worker is left.

        raises: DreamBoothError if workers are lost again and again, or can train none of them;
            CapacityError if there is room for none
        """
        self._pool = WorkerPool(self._start, bounds, self._cluster, self._say)
        try:
            self._train()
        except BaseException:
            self._pool.kill()
            raise
        self._pool.close()

    def _train(self) -> None:
        while not self._is_over:
            self._hand_out()
            if self._is_over:
                break
            self._pool.scale(self._awaited.count, is_over=self._queue.is_over)
            handle = self._wait(self._pool.handles) if len(self._pool) else None
            if handle is None:
                self._pool.check_worker_started()
                continue
            worker = self._pool.find(handle)
            try:
                event = handle.read_event()
                if event is None:
                    raise WorkerLostError("its worker has ended")
                self._handle_subject_event(worker, event)
            except WorkerLostError as error:
                self._replace(worker, error)

    @property
    def _is_over(self) -> bool:
        return self._queue.is_over and not (len(self._pool) and self._awaited.is_expected())

    def _hand_out(self) -> None:
        """The next subjects to the workers that have room for them."""
        while (worker := self._pool.find_free_worker()) is not None:
            entry = self._queue.next()
            if entry is None:
                return
            start_s = time.monotonic()
            try:
                subject_job = self._make_job(entry)
            except DreamBoothError as error:  # of this subject alone
                elapsed_s = time.monotonic() - start_s
                self._say(end_try(self._queue, entry, TryEnd.of_error(error), elapsed_s))
                continue
            self._pool.note_taken(worker, entry, start_s)
            worker.handle.add(subject_job)

    def _handle_subject_event(self, worker: PoolWorker, event: "SubjectEvent") -> None:
        if event.kind == "ready":
            worker.is_ready = True
            return
        entry, started_s = worker.entries[event.run_id]
        if event.step > self._steps.get(event.run_id, 0):
            self._steps[event.run_id] = event.step
            self._pool.reset_lost_count()
        if event.kind == "joined":
            self._say(f"{event.run_id}: in a slot from step {event.step} on")
            return
        if event.run_id not in worker.trained:
            worker.num_taken -= 1
        if event.kind == "trained":
            worker.trained.add(event.run_id)
            return
        self._pool.note_subject_gone(worker, event.run_id)
        elapsed_s = time.monotonic() - started_s
        if event.kind == "misfit":
            self._queue.withdraw(entry, elapsed_s)
            self.misfits.append(entry)
            self._say(f"{event.run_id}: {entry.state} {entry.note}".rstrip())
            return
        end_note = (
            f"at step {event.step}, as it was asked to" if event.kind == "stopped" else event.note
        )
        try_end = TryEnd(event.kind, end_note, event.is_permanent)
        self._say(end_try(self._queue, entry, try_end, elapsed_s))
        if entry.state != "waiting":
            self._steps.pop(event.run_id, None)

    def _replace(self, worker: PoolWorker, error: WorkerLostError) -> None:
        """Its subjects wait again, none the worse for it, and another worker takes its place."""
        self._pool.replace(worker, error)
        subjects_text = describe_count(len(worker.entries), "subject")
        self._say(f"a worker is lost ({error}); others take over its {subjects_text}")
        for entry, started_s in worker.entries.values():
            self._queue.put_back(entry, time.monotonic() - started_s)


def train_in_slots(
    fleet: FleetConfig,
    entries: list[FleetEntry],
    prepared: Mapping[str, PreparedRun],
    say: Callable[[str], None],
) -> list[FleetEntry]:
    """Train subjects in slots, group by group; returns those that have to be trained by themselves.

    prepared: by subject's id, with photographs that every host can read
    """
    entries_by_id = {entry.id: entry for entry in entries}
    slot_plan = group_subjects_for_shared_batches(
        {subject_id: prepared[subject_id].config for subject_id in entries_by_id}
    )
    separately_trained_entries = [entries_by_id[subject_id] for subject_id in slot_plan.obstacles]
    for subject_id, sharing_obstacle in slot_plan.obstacles.items():
        say(f"{subject_id}: is trained by itself, as {sharing_obstacle} can't share a batch")
    for group in slot_plan.groups:
        # All now: who stops a run while it waits for a slot means this fleet.
        slot_jobs = {
            subject_id: make_slot_job(prepared[subject_id]) for subject_id in group.subject_ids
        }
        first_run = prepared[group.subject_ids[0]]
        cluster_config = first_run.config.cluster
        start_worker, wait_for_event = make_ray_worker_functions(
            slot_jobs[group.subject_ids[0]], group.rank, cluster_config.gpus
        )
        if any(
            prepared[subject_id].config.cluster.span.max > 1 for subject_id in group.subject_ids
        ):
            say("cluster.workers means nothing in slots: workers are as many as `parallel` says")
        group_entries = [entries_by_id[subject_id] for subject_id in group.subject_ids]
        queue = FleetQueue(group_entries, len(group_entries), fleet.retries)
        slot_fleet = SlotFleet(
            queue, partial(_find_job, slot_jobs), start_worker, wait_for_event, say, cluster_config
        )
        slots_per_worker = divide_slots_among_workers(
            fleet.slots, fleet.parallel, len(group_entries)
        )
        say(
            f"{describe_count(len(group_entries), 'subject')} in "
            f"{describe_count(sum(slots_per_worker), 'slot')} of "
            f"{describe_count(len(slots_per_worker), 'worker')}"
        )
        slot_fleet.run(WorkerBounds.fixed(slots_per_worker))
        separately_trained_entries += slot_fleet.misfits
    return separately_trained_entries


def _find_job(slot_jobs: Mapping[str, WorkerJob], entry: FleetEntry) -> WorkerJob:
    return slot_jobs[entry.id]


def make_model_loading_job(prepared: PreparedRun) -> WorkerJob:
    """What a worker loads the model of, before it is handed any subject."""
    return pipeline.make_worker_job(prepared, open_run(prepared.config))


def make_slot_job(prepared: PreparedRun) -> WorkerJob:
    """What a worker is told of a subject, whose class images are there."""
    run_store = open_run(prepared.config)
    # Of an earlier time. Whoever stops the run from now on means this fleet.
    clear_stop_request(run_store)
    if prepared.config.prior.num_images:
        # Else the set might be collected as garbage.
        pipeline.record_used_prior_set(prepared, run_store)
    return pipeline.add_priors_to_job(pipeline.make_worker_job(prepared, run_store), prepared)
