"""A fleet's subjects as a queue in storage: added and listed by any process, claimed by others.

queue/fleet/{group}/    a queue of those that can share batches; `alone` is of those that can't

A subject's work is its configuration, with photographs that every host can read.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, TypeVar

from cluster.fleet_plan import FleetConfig, FleetSubject, dump_configurations
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

_Entry = TypeVar("_Entry")


def find_group(config: Config) -> str:
    """The queue of a subject: ranks up to the same power of two share one."""
    if find_obstacle(config) is not None:
        return ALONE
    rank = 1 << (config.train.lora.rank - 1).bit_length()
    key = f"{batch_group(config)} {rank}"
    return f"{hashlib.sha256(key.encode()).hexdigest()[:12]}-rank-{rank:05d}"


def read_rank(group: str) -> int:
    """The largest of a group; raises ConfigError for a name that `find_group` does not make."""
    rank = group.rpartition("-rank-")[2]
    if not rank.isdecimal():
        raise ConfigError(
            f"{FOLDER}/{group} is no queue of this version: update dreambooth-ray if a newer one "
            "wrote it, or else remove that folder"
        )
    return int(rank)


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

    def refuse_empty(self) -> None:
        """raises: ConfigError where nobody has ever added a subject, as at a mistaken address"""
        if not self.list_groups():
            raise ConfigError(
                f"{self._store.uri} holds no queue of subjects; give the storage.uri of their "
                "recipe, or put some there by `dreambooth fleet add FILE`"
            )

    def list_marks(
        self, state: Literal["waiting", "running"], after: str = "", limit: int = 50
    ) -> list[tuple[str, WorkMark]]:
        """A page of work with its group. after: "group/name" of the last one seen"""
        return self._list_page(
            after, limit, lambda queue, name, number: queue.list_marks(state, name, number)
        )

    def list_ended(self, after: str = "", limit: int = 50) -> list[tuple[str, EndedWork]]:
        """A page of work that is over, with its group, and its note where it was not done."""
        return [
            (group, ended if ended.state == "done" else self._add_note(group, ended))
            for group, ended in self._list_page(after, limit, WorkQueue.list_ended)
        ]

    def _add_note(self, group: str, ended: EndedWork) -> EndedWork:
        return replace(ended, note=self.open_queue(group).read_note(ended))

    def _list_page(
        self, after: str, limit: int, list_entries: Callable[[WorkQueue, str, int], list[_Entry]]
    ) -> list[tuple[str, _Entry]]:
        """list_entries: of one queue, up to so many after a name"""
        first_group, _, name = after.partition("/")
        page: list[tuple[str, _Entry]] = []
        for group in self.list_groups():
            if group >= first_group and len(page) < limit:
                start = name if group == first_group else ""
                entries = list_entries(self.open_queue(group), start, limit - len(page))
                page += [(group, entry) for entry in entries]
        return page

    def cancel(self, subject_id: str) -> str:
        """End a subject's work; how that stands: cancelled, asked, over.

        raises: ConfigError if no queue has it
        """
        for queue in map(self.open_queue, self.list_groups()):
            if queue.has(subject_id):
                return queue.cancel(subject_id)
        raise ConfigError(f"no subject {subject_id!r} in {self._store.uri}; `fleet ls` shows all")

    def find_groups(self, subject_ids: Iterable[str]) -> dict[str, str]:
        """The groups of those that a queue has, or had."""
        queues = {group: self.open_queue(group) for group in self.list_groups()}
        return {
            subject_id: group
            for subject_id in subject_ids
            for group, queue in queues.items()
            if queue.has(subject_id)
        }


def add_subjects(fleet: FleetConfig, say: Callable[[str], None]) -> None:
    """Look at every subject, then put them all into their queues.

    Adding that was cut off goes on when it is done again: what is there already stays as it is.
    raises: ConfigError or DataError for the first that can't be trained, before any is added
    """
    prepared: dict[str, PreparedRun] = {}
    _refuse_past_deadlines(fleet)
    for name, text in dump_configurations(fleet).items():
        config = parse_config(text, name, [])
        _refuse_address(config)
        prepared[name] = fit_into_memory(prepare_run(config, QuietDisplay()), say)
    ids_by_storage: dict[str, list[str]] = {}
    for subject_id, run in prepared.items():
        ids_by_storage.setdefault(run.config.storage.uri, []).append(subject_id)
    for uri, subject_ids in ids_by_storage.items():
        _refuse_other_groups(FleetStore(uri), {name: prepared[name] for name in subject_ids})
    created_ms = int(time.time() * 1000)
    num_new = sum([_add_subject(s, prepared[s.id], created_ms, say) for s in fleet.subjects])
    if not num_new:
        raise ConfigError(
            "every subject of the file is in the queue already, or was; ids name runs: take "
            "others, or `dreambooth resume` those runs"
        )


def _add_subject(
    subject: FleetSubject, prepared: PreparedRun, created_ms: int, say: Callable[[str], None]
) -> bool:
    """Whether it was not in the queue before."""
    config = make_portable_config(prepared.config)
    # From now on the run says what it uses: nobody collects that as garbage.
    open_run(config, inputs=prepared.inputs)
    group = find_group(config)
    record = WorkRecord(
        id=subject.id,
        owner=subject.owner,
        payload=dump_config(config),
        priority=subject.priority,
        deadline_s=subject.deadline_s,
        created_ms=created_ms,
    )
    is_new = FleetStore(config.storage.uri).open_queue(group).add(record)
    say(f"{subject.id}: {'waits in' if is_new else 'was added before to'} {group}")
    return is_new


def _refuse_other_groups(fleet_store: FleetStore, prepared: Mapping[str, PreparedRun]) -> None:
    """raises: ConfigError for a subject whose id has other work, which shares other batches"""
    for subject_id, group in fleet_store.find_groups(prepared).items():
        if group != find_group(prepared[subject_id].config):
            raise ConfigError(
                f"subject {subject_id!r} is in the queue already, or was, with other settings; ids "
                "name runs: take another one, or `dreambooth resume` that run"
            )


def _refuse_past_deadlines(fleet: FleetConfig) -> None:
    for subject in fleet.subjects:
        if subject.deadline_s is not None and subject.deadline_s <= time.time():
            raise ConfigError(
                f"subject {subject.id!r}: deadline={subject.deadline} has passed; give a later one"
            )


def _refuse_address(config: Config) -> None:
    """raises: ConfigError for subjects that would be bound to a cluster"""
    if config.cluster.address is not None:
        raise ConfigError(
            f"cluster.address={config.cluster.address}: who takes subjects from the queue decides "
            "where they are trained; leave it out, and give RAY_ADDRESS to `dreambooth fleet run`"
        )
