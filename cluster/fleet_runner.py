"""`dreambooth fleet run`: trains what waits in a storage's queues, until nothing does."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.fleet_queue import FleetEntry, run_queue
from cluster.fleet_run import generate_priors, read_task_end, start_training, wait_for_first
from cluster.fleet_settings import FleetSettings
from cluster.fleet_store import ALONE, FleetStore, parse_group_rank
from cluster.session import ray_connection
from cluster.slot_actor import make_ray_worker_functions
from cluster.slot_fleet import QueueDemand, SlotFleet, make_model_loading_job, make_slot_job
from cluster.stored_queue import LOCAL_INTERVAL_S, REMOTE_INTERVAL_S, StoredQueue
from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.preparation import PreparedRun, prepare_run
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.runs import open_run
from dreambooth_ray.storage.lease import Clock
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.stop_request import request_stop
from dreambooth_ray.training.worker_job import WorkerJob

# Of claims. A process that dies on another host is missed after so long.
_LEASE_S = 120.0
# Of who stays: how long a group goes on while others wait; until one that failed is tried again.
_TURN_S, _FAILED_S = 600.0, 600.0


@dataclass(frozen=True)
class FailedGroup:
    """Why no worker could train a group, and when that was."""

    error: DreamBoothError
    failed_at_s: float


class FleetRunner:
    """Trains subjects of a storage's queues on one Ray."""

    def __init__(
        self,
        settings: FleetSettings,
        say: Callable[[str], None],
        clock: Clock = time.monotonic,
    ) -> None:
        """clock: that turns of groups are measured by"""
        self._settings, self._say, self._clock = settings, say, clock
        self._fleet_store = FleetStore(settings.storage)
        is_local = Store(settings.storage).is_local
        self._interval_s = LOCAL_INTERVAL_S if is_local else REMOTE_INTERVAL_S
        # They remember for how long others have been silent.
        self._queues: dict[str, WorkQueue] = {}
        self._failed_groups: dict[str, FailedGroup] = {}
        self._turn_began_s, self._looked_at_s, self._has_others = 0.0, -math.inf, False
        self._prior_counts: dict[str, int] = {}
        self._ray, self._has_ray = ExitStack(), False
        self._has_said_silent = False

    def run(self) -> list[FleetEntry]:
        """Group after group, until none has work; returns what was trained here.

        raises: ConfigError if there is no queue; DreamBoothError of the first group that no worker
            can train, once the others are done
        """
        self._fleet_store.refuse_empty_storage()
        entries: dict[str, FleetEntry] = {}
        with self._ray:
            while True:
                new_entries = self._run_groups()
                if self._settings.stays:
                    # They would be more and more.
                    time.sleep(0.0 if new_entries else self._interval_s)
                    continue
                entries |= {entry.id: entry for entry in new_entries}
                if not new_entries and not self._has_silent_claims():
                    break
        if self._failed_groups:
            raise next(iter(self._failed_groups.values())).error
        return list(entries.values())

    def _run_groups(self) -> list[FleetEntry]:
        entries = []
        for group in self._fleet_store.list_groups():
            if self._has_group_failed(group):
                continue
            self._turn_began_s, self._looked_at_s = self._clock(), -math.inf
            with self._open_queue(group) as queue:
                # Its configuration says what the workers of its group need.
                if (first_entry := queue.peek()) is not None:
                    self._connect_to_ray(queue.get_prepared_run(first_entry).config)
                    try:
                        self._run_group(group, queue, first_entry)
                    except DreamBoothError as error:
                        failed_group = FailedGroup(error.with_traceback(None), self._clock())
                        self._failed_groups[group] = failed_group
                        self._say(f"{group}: {error}; its subjects wait again")
                entries += queue.entries
        return entries

    def _has_group_failed(self, group: str) -> bool:
        """Whether no worker could train it; who stays tries again after a while."""
        failed_group = self._failed_groups.get(group)
        if failed_group is None:
            return False
        return not self._settings.stays or self._clock() - failed_group.failed_at_s < _FAILED_S

    def _must_yield(self, group: str) -> bool:
        """Whether others have waited long enough for a group that never ends."""
        has_long_turn = self._clock() - self._turn_began_s > _TURN_S
        return self._settings.stays and has_long_turn and self._do_other_groups_wait(group)

    def _expects_more_subjects(self, group: str) -> bool:
        """Whether more of a group is waited for, once none waits."""
        return self._settings.stays and not self._do_other_groups_wait(group)

    def _do_other_groups_wait(self, group: str) -> bool:
        """Whether another group has waiting subjects; a moment old."""
        now_s = self._clock()
        if now_s - self._looked_at_s >= self._interval_s:
            self._looked_at_s = now_s
            self._has_others = any(
                self._fleet_store.open_queue(other).list_marks("waiting", "", 1)
                for other in self._fleet_store.list_groups()
                if other != group and not self._has_group_failed(other)
            )
        return self._has_others

    def _has_silent_claims(self) -> bool:
        """Whether others have claims and nothing was heard of them yet: they may have died.

        Then a moment has passed.
        """
        num_silent_claims = sum(
            queue.num_silent
            for group, queue in self._queues.items()
            if group not in self._failed_groups
        )
        if num_silent_claims:
            if not self._has_said_silent:
                subjects_text = describe_count(num_silent_claims, "subject")
                self._say(f"looking whether processes live that train {subjects_text}")
                self._has_said_silent = True
            time.sleep(self._interval_s)
        return bool(num_silent_claims)

    def _open_queue(self, group: str) -> StoredQueue:
        if group not in self._queues:
            self._queues[group] = self._fleet_store.open_queue(group)
        settings = self._settings
        return StoredQueue(
            self._queues[group],
            _prepare_queued_run,
            _request_stop,
            self._say,
            lease_s=_LEASE_S,
            retries=settings.retries,
            interval_s=self._interval_s,
            # Slots, and as many that have left one and make their bundles.
            most_at_once=settings.most
            if self._trains_subjects_alone(group)
            else 2 * settings.slots,
            most_of_owner=settings.budget,
            must_yield=partial(self._must_yield, group),
        )

    def _trains_subjects_alone(self, group: str) -> bool:
        return group == ALONE or not self._settings.slots

    def _connect_to_ray(self, config: Config) -> None:
        if not self._has_ray:
            num_processes = max(
                config.num_workers_and_actors, self._settings.most + config.prior.span.max
            )
            self._ray.enter_context(ray_connection(config.cluster, num_processes))
            self._has_ray = True

    def _run_group(self, group: str, queue: StoredQueue, first_entry: FleetEntry) -> None:
        if self._trains_subjects_alone(group):
            start_alone = partial(self._start_alone, queue)
            run_queue(queue, start_alone, wait_for_first, read_task_end, self._say)
            return
        prepared_run = queue.get_prepared_run(first_entry)
        cluster_config = prepared_run.config.cluster
        start_worker, wait_for_event = make_ray_worker_functions(
            make_model_loading_job(prepared_run), parse_group_rank(group), cluster_config.gpus
        )
        queue_demand = QueueDemand(queue.count_waiting, partial(self._expects_more_subjects, group))
        make_job = partial(self._make_subject_job, queue)
        slot_fleet = SlotFleet(
            queue, make_job, start_worker, wait_for_event, self._say, cluster_config, queue_demand
        )
        slot_fleet.run(self._settings.bounds)

    def _start_alone(self, queue: StoredQueue, entry: FleetEntry) -> Any:
        prepared_run = queue.get_prepared_run(entry)
        generate_priors([prepared_run], self._say, self._prior_counts)
        return start_training(prepared_run.config)

    def _make_subject_job(self, queue: StoredQueue, entry: FleetEntry) -> WorkerJob:
        """With its class images, which are drawn here if nobody has drawn that set yet."""
        prepared_run = queue.get_prepared_run(entry)
        generate_priors([prepared_run], self._say, self._prior_counts)
        return make_slot_job(prepared_run)


def _prepare_queued_run(record: WorkRecord) -> PreparedRun:
    """raises: ConfigError, DataError, StorageError if it can't be trained"""
    return prepare_run(parse_config(record.payload, record.id, []), QuietDisplay())


def _request_stop(prepared: PreparedRun) -> None:
    request_stop(open_run(prepared.config))
