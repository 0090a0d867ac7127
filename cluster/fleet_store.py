"""A fleet's subjects as a queue in storage: added and listed by any process, claimed by others.

queue/fleet/{group}/    a queue of those that can share batches; `alone` is of those that can't

A subject's work is its configuration, with photographs that every host can read.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeVar

from cluster.fleet_plan import FleetConfig, FleetSubject, load_configurations
from cluster.ray_jobs import make_portable_config
from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.preparation import PreparedRun, fit_into_memory, prepare_run
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import EndedWork, WorkMark, WorkRecord
from dreambooth_ray.runs import open_run
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.slots.shared_batch_rules import (
    find_shared_batch_obstacle,
    make_shared_batch_key,
)

FOLDER = "queue/fleet"
ALONE = "alone"

_Entry = TypeVar("_Entry")
# Storage, group and record.
_Work = tuple[str, str, WorkRecord]


def derive_group_name(config: Config) -> str:
    """The queue of a subject: ranks up to the same power of two share one."""
    if find_shared_batch_obstacle(config) is not None:
        return ALONE
    lora_rank = 1 << (config.train.lora.rank - 1).bit_length()
    group_key = f"{make_shared_batch_key(config)} {lora_rank}"
    return f"{hashlib.sha256(group_key.encode()).hexdigest()[:12]}-rank-{lora_rank:05d}"


def parse_group_rank(group: str) -> int:
    """The largest of a group; raises ConfigError for a name that is none of a group."""
    lora_rank = group.rpartition("-rank-")[2]
    if not lora_rank.isdecimal():
        raise ConfigError(
            f"{FOLDER}/{group} is no queue of this version: update dreambooth-ray if a newer one "
            "wrote it, or else remove that folder"
        )
    return int(lora_rank)


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

    def refuse_empty_storage(self) -> None:
        """raises: ConfigError where nobody has ever added a subject, as at a mistaken address"""
        if not self.list_groups():
            raise ConfigError(
                f"{self._store.uri} holds no queue of subjects; give the storage.uri of their "
                "recipe, or put some there by `dreambooth fleet add FILE`"
            )

    def list_unfinished_works(
        self, state: Literal["waiting", "running"], after: str = "", limit: int = 50
    ) -> list[tuple[str, WorkMark]]:
        """A page of work with its group. after: "group/name" of the last one seen"""
        return self._list_work_page(
            after, limit, lambda queue, name, number: queue.list_marks(state, name, number)
        )

    def list_ended(self, after: str = "", limit: int = 50) -> list[tuple[str, EndedWork]]:
        """A page of work that is over, with its group, and its note where it was not done."""
        return [
            (group, ended if ended.state == "done" else self._read_end_note(group, ended))
            for group, ended in self._list_work_page(after, limit, WorkQueue.list_ended)
        ]

    def _read_end_note(self, group: str, ended: EndedWork) -> EndedWork:
        return replace(ended, note=self.open_queue(group).read_end_note(ended))

    def _list_work_page(
        self, after: str, limit: int, list_entries: Callable[[WorkQueue, str, int], list[_Entry]]
    ) -> list[tuple[str, _Entry]]:
        """list_entries: of one queue, up to so many after a name"""
        first_group, _, last_work_name = after.partition("/")
        work_page: list[tuple[str, _Entry]] = []
        for group in self.list_groups():
            if group >= first_group and len(work_page) < limit:
                start_after_name = last_work_name if group == first_group else ""
                group_works = list_entries(
                    self.open_queue(group), start_after_name, limit - len(work_page)
                )
                work_page += [(group, entry) for entry in group_works]
        return work_page

    def cancel(self, subject_id: str) -> str:
        """End a subject's work; how that stands: cancelled, asked, over.

        raises: ConfigError if no queue has it
        """
        for queue in map(self.open_queue, self.list_groups()):
            if queue.has_work(subject_id):
                return queue.cancel(subject_id)
        raise ConfigError(f"no subject {subject_id!r} in {self._store.uri}; `fleet ls` shows all")


def add_subjects(fleet: FleetConfig, say: Callable[[str], None]) -> None:
    """Look at every subject, then put them all into their queues.

    Adding that was cut off goes on when it is done again: what is there already stays as it is.
    raises: ConfigError or DataError for the first that can't be trained, before any is added
    """
    prepared_runs: dict[str, PreparedRun] = {}
    _refuse_past_deadlines(fleet)
    for subject_id, config in load_configurations(fleet).items():
        _refuse_what_no_queue_keeps(config)
        prepared_runs[subject_id] = fit_into_memory(prepare_run(config, QuietDisplay()), say)
    created_ms = int(time.time() * 1000)
    works = [_make_work(s, prepared_runs[s.id], created_ms) for s in fleet.subjects]
    _refuse_reused_ids(works)
    num_new_works = 0
    for uri, group, work_record in works:
        is_new = FleetStore(uri).open_queue(group).add(work_record)
        say(f"{work_record.id}: {'waits in' if is_new else 'was added before to'} {group}")
        num_new_works += is_new
    if not num_new_works:
        raise ConfigError(
            "every subject of the file is in the queue already, or was; ids name runs: take "
            "others, or `dreambooth resume` those runs"
        )


def _make_work(subject: FleetSubject, prepared: PreparedRun, created_ms: int) -> _Work:
    """raises: ConfigError if its id is that of a run with another configuration"""
    config = make_portable_config(prepared.config)
    # From now on the run says what it uses: nobody collects that as garbage.
    open_run(config, inputs=prepared.inputs)
    work_record = WorkRecord(
        id=subject.id,
        owner=subject.owner,
        payload=dump_config(config),
        priority=subject.priority,
        deadline_s=subject.deadline_s,
        created_ms=created_ms,
    )
    return config.storage.uri, derive_group_name(config), work_record


def _refuse_reused_ids(works: list[_Work]) -> None:
    """raises: ConfigError for an id that has, or had, other work

    In its own queue: work of another is a run of another configuration, which was refused before.
    """
    for uri, group, work_record in works:
        queue = FleetStore(uri).open_queue(group)
        if queue.has_work(work_record.id) and not queue.read(work_record.id).is_same_work(
            work_record
        ):
            raise ConfigError(
                f"subject {work_record.id!r} is in the queue already, or was, with other settings; "
                "ids name runs: take another one, or `dreambooth resume` that run"
            )


def _refuse_past_deadlines(fleet: FleetConfig) -> None:
    for subject in fleet.subjects:
        if subject.deadline_s is not None and subject.deadline_s <= time.time():
            raise ConfigError(
                f"subject {subject.id!r}: deadline={subject.deadline} has passed; give a later one"
            )


def _refuse_what_no_queue_keeps(config: Config) -> None:
    """raises: ConfigError for keys that bind subjects to a cluster, or may be secrets"""
    if config.cluster.address is not None:
        raise ConfigError(
            f"cluster.address={config.cluster.address}: who takes subjects from the queue decides "
            "where they are trained; leave it out, and give RAY_ADDRESS to `dreambooth fleet run`"
        )
    if config.storage.options:
        raise ConfigError(
            f"storage.options.{next(iter(config.storage.options))}: the queue keeps no options, "
            "which may be keys; give them by the environment, AWS_ENDPOINT_URL and the like, to "
            "`dreambooth fleet add` and `fleet run`"
        )
