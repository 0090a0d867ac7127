"""`dreambooth fleet run`: trains what waits in a storage's queues, until nothing does."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cluster.fleet_plan import FleetEntry, FleetSubject, run_queue
from cluster.fleet_run import describe_failure, generate_priors, start_training, wait_for_first
from cluster.fleet_store import ALONE, FleetStore, read_rank
from cluster.session import connection
from cluster.slot_fleet import SlotFleet, make_slot_job, start_ray_workers
from cluster.slot_plan import divide_slots
from cluster.stored_queue import LOCAL_INTERVAL_S, REMOTE_INTERVAL_S, StoredQueue
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.preparation import PreparedRun, prepare_run
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.runs import open_run
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.stop_request import request_stop
from dreambooth_ray.training.worker_job import WorkerJob

# Of claims. A process that dies on another host is missed after so long.
_LEASE_S = 120.0
# Subjects whose configurations are remembered, the newest; those that run are among them.
_KEPT_RUNS = 512
# Between looks at the queue while workers say nothing.
_WAIT_S = 2.0


class FleetWorker:
    """Trains subjects of a storage's queues on one Ray."""

    def __init__(
        self,
        storage_uri: str,
        slots: int,
        parallel: int,
        retries: int,
        say: Callable[[str], None],
        most_of_owner: int | None = None,
    ) -> None:
        """slots, parallel, retries: as of a fleet's file; most_of_owner: of one owner's at once"""
        self._storage_uri, self._slots, self._parallel = storage_uri, slots, parallel
        self._retries, self._say, self._most_of_owner = retries, say, most_of_owner
        self._fleet_store = FleetStore(storage_uri)
        self._prepared: dict[str, PreparedRun] = {}
        self._prior_digests: set[str] = set()
        self._ray, self._has_ray = ExitStack(), False

    def run(self) -> list[FleetEntry]:
        """Group after group, until none has work; returns what was trained here."""
        entries: list[FleetEntry] = []
        with self._ray:
            while new_entries := self._run_groups():
                entries += new_entries
        return entries

    def _run_groups(self) -> list[FleetEntry]:
        entries = []
        for group in self._fleet_store.list_groups():
            with self._open_queue(group) as queue:
                # Its configuration says what the workers of its group need.
                if (first := queue.peek()) is not None:
                    self._run_group(group, queue, first)
                entries += queue.entries
        return entries

    def _open_queue(self, group: str) -> StoredQueue:
        store = Store(self._storage_uri)
        return StoredQueue(
            self._fleet_store.open_queue(group),
            self._open_entry,
            self._stop_entry,
            self._say,
            lease_s=_LEASE_S,
            retries=self._retries,
            interval_s=LOCAL_INTERVAL_S if store.is_local else REMOTE_INTERVAL_S,
            most_at_once=self._parallel if self._is_alone(group) else max(1, self._slots),
            most_of_owner=self._most_of_owner,
        )

    def _is_alone(self, group: str) -> bool:
        return group == ALONE or not self._slots

    def _open_entry(self, record: WorkRecord) -> FleetEntry:
        """raises: ConfigError, DataError, StorageError if it can't be trained"""
        config = parse_config(record.payload, record.id, [])
        # A queue may have more subjects than this process has room for.
        while len(self._prepared) > max(_KEPT_RUNS, 4 * self._slots):
            self._prepared.pop(next(iter(self._prepared)))
        self._prepared[record.id] = prepare_run(config, QuietDisplay())
        subject = FleetSubject(
            id=record.id,
            photos=config.subject.photos,
            class_noun=config.subject.class_noun,
            owner=record.owner,
            priority=record.priority,
        )
        return FleetEntry(subject)

    def _stop_entry(self, entry: FleetEntry) -> None:
        request_stop(open_run(self._prepared[entry.subject.id].config))

    def _run_group(self, group: str, queue: StoredQueue, first: FleetEntry) -> None:
        config = self._prepared[first.subject.id].config
        if not self._has_ray:
            num_processes = max(config.processes, self._parallel + config.prior.span.max)
            self._ray.enter_context(connection(config.cluster, num_processes))
            self._has_ray = True
        if self._is_alone(group):
            run_queue(queue, self._start_alone, wait_for_first, describe_failure, self._say)
            return
        start, wait = start_ray_workers(
            self._make_job(first), read_rank(group), config.cluster.gpus, wait_s=_WAIT_S
        )
        max_failures = config.cluster.max_failures
        fleet = SlotFleet(queue, self._make_job, start, wait, self._say, max_failures)
        fleet.run(divide_slots(self._slots, self._parallel, self._slots))

    def _start_alone(self, entry: FleetEntry) -> Any:
        prepared = self._prepared[entry.subject.id]
        generate_priors([prepared], self._say, self._prior_digests)
        return start_training(prepared.config)

    def _make_job(self, entry: FleetEntry) -> WorkerJob:
        """With its class images, which are drawn here if nobody has drawn that set yet."""
        prepared = self._prepared[entry.subject.id]
        generate_priors([prepared], self._say, self._prior_digests)
        return make_slot_job(prepared)
