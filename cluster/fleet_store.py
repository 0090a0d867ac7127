"""A fleet's subjects as a queue in storage: added and listed by any process, claimed by others.

queue/fleet/{group}/    a queue of those that can share batches; `alone` is of those that can't

A subject's work is its configuration, with photographs that every host can read.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from cluster.fleet_plan import FleetConfig, dump_configurations
from cluster.ray_jobs import make_portable_config
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.preparation import PreparedRun, fit_into_memory, prepare_run
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import EndedWork, WorkMark, WorkRecord
from dreambooth_ray.runs import open_run
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.slots.batch_policy import batch_group, find_obstacle

FOLDER = "queue/fleet"
ALONE = "alone"


def find_group(config: Config) -> str:
    """The queue of a subject: ranks up to the same power of two share one."""
    if find_obstacle(config) is not None:
        return ALONE
    rank = 1 << (config.train.lora.rank - 1).bit_length()
    key = f"{batch_group(config)} {rank}"
    return f"{hashlib.sha256(key.encode()).hexdigest()[:12]}-rank-{rank:05d}"


def read_rank(group: str) -> int:
    """The largest of a group."""
    return int(group.rpartition("-")[2])


class FleetStore:
    """The queues of one storage."""

    def __init__(self, storage_uri: str) -> None:
        self._store = Store(storage_uri).sub(FOLDER)

    def open_queue(self, group: str) -> WorkQueue:
        """The queue of a group."""
        return WorkQueue(self._store.sub(group))

    def list_groups(self) -> list[str]:
        """Those that ever had work."""
        return self._store.names()

    def list_marks(
        self, state: Literal["waiting", "running"], limit: int
    ) -> list[tuple[str, WorkMark]]:
        """Work with its group, up to `limit` of each."""
        return [
            (group, mark)
            for group in self.list_groups()
            for mark in self.open_queue(group).list_marks(state, "", limit)
        ]

    def list_ended(self, limit: int) -> list[tuple[str, EndedWork]]:
        """Work that is over, with its group and its note, up to `limit` of each."""
        return [
            (group, replace(ended, note=queue.read_note(ended)))
            for group in self.list_groups()
            for queue in [self.open_queue(group)]
            for ended in queue.list_ended("", limit)
        ]

    def cancel(self, subject_id: str) -> str:
        """End a subject's work; how that stands: cancelled, asked, over.

        raises: ConfigError if no queue has it
        """
        for queue in map(self.open_queue, self.list_groups()):
            if queue.has(subject_id):
                return queue.cancel(subject_id)
        raise ConfigError(f"no subject {subject_id!r} in {self._store.uri}; `fleet ls` shows all")

    def refuse_known(self, subject_id: str) -> None:
        """raises: ConfigError if a queue has, or had, a subject of that id"""
        if any(self.open_queue(group).has(subject_id) for group in self.list_groups()):
            raise ConfigError(
                f"subject {subject_id!r} is in the queue of {self._store.uri} already, or was; ids "
                "name runs: take another one, or `dreambooth resume` that run"
            )


def add_subjects(fleet: FleetConfig, say: Callable[[str], None]) -> None:
    """Look at every subject, then put them all into their queues.

    raises: ConfigError or DataError for the first that can't be trained, before any is added
    """
    prepared: dict[str, PreparedRun] = {}
    for name, text in dump_configurations(fleet).items():
        run = prepare_run(parse_config(text, name, []), QuietDisplay())
        prepared[name] = fit_into_memory(run, say)
    for subject_id, run in prepared.items():
        FleetStore(run.config.storage.uri).refuse_known(subject_id)
    started_ms = int(time.time() * 1000)
    for subject in fleet.subjects:
        run = prepared[subject.id]
        config = make_portable_config(run.config)
        # From now on the run says what it uses: nobody collects that as garbage.
        open_run(config, inputs=run.inputs)
        group = find_group(config)
        record = WorkRecord(
            id=subject.id,
            owner=subject.owner,
            payload=dump_config(config),
            priority=subject.priority,
            created_ms=started_ms,
        )
        FleetStore(config.storage.uri).open_queue(group).add(record)
        say(f"{subject.id}: waits in {group}")
