"""Work that ended long ago, in queues of a storage: found in one listing, removed under its lease.

Its record goes first and the mark of its end last: whoever is cut off between them is followed by
the next. A record without any mark would say for ever that its work was added before.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.claims import Claims
from dreambooth_ray.queue.work_records import (
    EndedWork,
    WorkMark,
    WorkRecord,
    ended_mark_name,
    parse_ended_mark_name,
    work_record_path,
)
from dreambooth_ray.storage.file_listing import ListedFile, find_modified_s, list_files
from dreambooth_ray.storage.garbage import LEASE_S, Garbage
from dreambooth_ray.storage.lease import LeaseFiles
from dreambooth_ray.storage.local_files import remove_empty_folder_tree
from dreambooth_ray.storage.store import Store

FOLDER = "queue"
# How it ended is worth a look for so long.
ENDED_S = 7 * 86_400.0
_LEASE_S = 60.0
_REMOVERS = 16


@dataclass(frozen=True)
class EndedGarbage(Garbage):
    """Of one queue: what ended long ago, each with all marks of its ends."""

    ended: tuple[tuple[EndedWork, ...], ...] = ()


@dataclass
class _ListedQueue:
    """What a listing says of a queue, by the ids of its work."""

    ends: defaultdict[str, list[EndedWork]] = field(default_factory=lambda: defaultdict(list))
    files: defaultdict[str, list[ListedFile]] = field(default_factory=lambda: defaultdict(list))
    open_ids: set[str] = field(default_factory=set)

    def add(self, kind: str, name: str, file: ListedFile) -> None:
        """kind: of a `WorkQueue`'s folders; name: below it. Raises ConfigError for another mark."""
        if kind in ("waiting", "running"):
            self.open_ids.add(WorkMark.parse(name).id)
            return
        if kind == "ended":
            work_end = parse_ended_mark_name(name)
            self.ends[work_end.id].append(work_end)
            work_id = work_end.id
        elif kind == "records":
            work_id = name.rpartition("/")[2].removesuffix(".json")
        else:
            work_id = name.partition("/")[0]
        self.files[work_id].append(file)


def find_ended_garbage(storage: Store, before_s: float, now_s: float) -> Iterator[EndedGarbage]:
    """Work that ended a week ago or longer, as one for each queue.

    before_s: Unix time; what has changed since stays. now_s: Unix time
    raises: StorageError
    """
    queues_by_name: defaultdict[str, _ListedQueue] = defaultdict(_ListedQueue)
    newer_format_queues = set()
    for listed_file in list_files(storage, FOLDER):
        path_parts = listed_file.name.split("/", 3)
        if len(path_parts) < 4:
            continue
        queue_name = "/".join(path_parts[:2])
        try:
            queues_by_name[queue_name].add(path_parts[2], path_parts[3], listed_file)
        except ConfigError:  # a newer version's: nobody here knows what it means
            newer_format_queues.add(queue_name)
    for queue_name in sorted(set(queues_by_name) - newer_format_queues):
        yield from _collect_queue_garbage(
            f"{FOLDER}/{queue_name}", queues_by_name[queue_name], before_s, now_s
        )


def _collect_queue_garbage(
    name: str, queue: _ListedQueue, before_s: float, now_s: float
) -> Iterator[EndedGarbage]:
    ended_work, garbage_files = [], []
    for work_id, work_ends in queue.ends.items():
        is_old = max(work_end.ended_ms for work_end in work_ends) / 1000 < now_s - ENDED_S
        is_unchanged = all(
            listed_file.modified_s < before_s for listed_file in queue.files[work_id]
        )
        if is_old and is_unchanged and work_id not in queue.open_ids:
            ended_work.append(tuple(work_ends))
            garbage_files += queue.files[work_id]
    if ended_work:
        reason = f"{describe_count(len(ended_work), 'piece')} of work that ended a week ago"
        size_bytes = sum(listed_file.size_bytes for listed_file in garbage_files)
        modified_s = max(listed_file.modified_s for listed_file in garbage_files)
        yield EndedGarbage(name, reason, size_bytes, modified_s, ended=tuple(ended_work))


def remove_ended_garbage(storage: Store, item: EndedGarbage) -> bool:
    """Remove it, but what somebody has taken up again meanwhile; whether any was removed.

    raises: StorageError
    """
    queue = storage.sub(item.name)
    remove_work = partial(remove_ended_work, queue, queue.sub("claims"))
    with ThreadPoolExecutor(_REMOVERS) as pool:
        return any(list(pool.map(remove_work, item.ended)))


def remove_ended_work(queue: Store, claims: Store, ends: tuple[EndedWork, ...]) -> bool:
    """Remove one piece of work, unless it waits or runs again; whether it was removed.

    claims: where its claims lie, in a folder of its own that goes as well; ends: all its marks
    """
    work_id = ends[0].id
    work_claims = Claims(claims)
    lease = work_claims.claim(work_id, _LEASE_S)
    if lease is None:
        lease_files = work_claims.lease_files(work_id, _LEASE_S)
        if (silent_lease := _find_silent_lease(claims, lease_files)) is not None:
            lease = work_claims.claim(work_id, _LEASE_S, silent_lease=silent_lease)
    if lease is None:
        return False
    if _is_work_open(queue, work_id):
        lease.release()
        return False
    for file_name in (f"failures/{work_id}", f"cancelled/{work_id}", work_record_path(work_id)):
        queue.remove_file(file_name)
    claims.remove(work_id)
    for work_end in ends:
        queue.remove_file(f"ended/{ended_mark_name(work_end)}")
        if queue.is_local:
            remove_empty_folder_tree(queue.local_path(f"ended/{ended_mark_name(work_end)}").parent)
    return True


def _find_silent_lease(claims: Store, files: LeaseFiles) -> int | None:
    """Of a runner that died between the mark of the end and giving its lease back."""
    newest_number = files.newest_lease_number()
    if newest_number is None:
        return None
    written_s = find_modified_s(claims, files.lease_file_name(newest_number))
    is_silent = written_s is not None and time.time() - written_s > LEASE_S
    return newest_number if is_silent else None


def _is_work_open(queue: Store, work_id: str) -> bool:
    """Whether it waits or runs again; what can't be read might."""
    try:
        mark_name = WorkMark.of(
            WorkRecord.parse(queue.read(work_record_path(work_id)), queue.uri)
        ).name
    except FileNotFoundError:  # whoever removed it was cut off
        return False
    except ConfigError:
        return True
    # As it may change from one to the other.
    open_states = ("waiting", "running", "waiting")
    return any(queue.exists(f"{state}/{mark_name}") for state in open_states)
