"""A durable queue of work that any process may add to, look at, claim from: files of one store.

records/{shard}/{id}.json                       what is to be done; written once, by who adds it
waiting/{owner}/{rank}/{second}/{ms}-{id}       it waits; the name says all that its turn depends on
running/{owner}/{rank}/{second}/{ms}-{id}       somebody has claimed it
claims/{id}/lease-0001.json ...                 who; a number more each try
ended/{second}/{ms}-{state}-{id}                how it ended, and when; its content says why
cancelled/{id}                                  somebody wants it ended, while it runs

Leases decide, marks are hints: who claims takes the lease of what a mark names, then looks whether
the mark is still there. A process that dies anywhere leaves a lease that falls silent, and
`recover` puts its work back.

No folder grows with the queue: marks lie by second, so that a look reads few of them, and an
object store lists from a name on. rank: higher priorities first.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.claims import Claims
from dreambooth_ray.queue.work_records import (
    EndedWork,
    WorkEnd,
    WorkMark,
    WorkRecord,
    end_name,
    parse_end,
    quote_owner,
)
from dreambooth_ray.storage.lease import Clock, Lease
from dreambooth_ray.storage.local_files import remove_empty_folders
from dreambooth_ray.storage.store import Store

_MOST_RUNNING = 10_000
# Marks of one owner that are tried for a claim: others may claim the first at the same moment.
_TRIED_MARKS = 16


@dataclass(frozen=True)
class ClaimedWork:
    """Work of this process, as long as its lease is renewed."""

    record: WorkRecord
    lease: Lease

    @property
    def num_tries(self) -> int:
        """How often it was claimed, this time included."""
        return self.lease.number


class WorkQueue:
    """A queue in a folder of storage. For several threads.

    raises: StorageError, in all of it
    """

    def __init__(self, store: Store, clock: Clock = time.monotonic) -> None:
        """clock: that others' leases are watched by"""
        self._store = store
        self._claims = Claims(store.sub("claims"), clock)
        self._num_given: Counter[str] = Counter()

    def add(self, record: WorkRecord) -> None:
        """Put work at the end of its owner's.

        raises: ConfigError if work of that id was added before
        """
        if not self._store.create(_record_file(record.id), record.model_dump_json().encode()):
            raise ConfigError(f"{record.id!r} is in the queue already; ids name one piece of work")
        self._write_waiting(WorkMark.of(record))

    def _write_waiting(self, mark: WorkMark) -> None:
        while True:
            with suppress(FileNotFoundError):  # its folder was empty a moment ago, and tidied away
                self._store.write(f"waiting/{mark.name}", b"")
                return

    def has(self, work_id: str) -> bool:
        """Whether work of that id was ever added."""
        return self._store.exists(_record_file(work_id))

    def read(self, work_id: str) -> WorkRecord:
        """raises: ConfigError if there is no such work"""
        try:
            return WorkRecord.model_validate_json(self._store.read(_record_file(work_id)))
        except FileNotFoundError as error:
            raise ConfigError(f"no work {work_id!r} in the queue {self._store.uri}") from error

    def list_marks(
        self, state: Literal["waiting", "running"], after: str = "", limit: int = 50
    ) -> list[WorkMark]:
        """A page, by owner and turn. after: `WorkMark.name` of the last one seen"""
        return [WorkMark.parse(name) for name in self._store.files_after(state, after, limit)]

    def list_ended(self, after: str = "", limit: int = 50) -> list[EndedWork]:
        """A page, the earliest first, less the notes. after: `end_name` of the last one seen"""
        return [parse_end(name) for name in self._store.files_after("ended", after, limit)]

    def read_note(self, ended: EndedWork) -> str:
        """Why work ended as it did."""
        return str(json.loads(self._store.read(f"ended/{end_name(ended)}"))["note"])

    def claim_next(self, lease_s: float, most_of_owner: int | None = None) -> ClaimedWork | None:
        """The next work, now this process's: of the owner of whom least is running.

        most_of_owner: how much of one owner's may run at once; None is no limit
        returns: None if nothing waits that may be begun
        """
        running = Counter(mark.owner for mark in self.list_marks("running", "", _MOST_RUNNING))
        owners = [unquote(name) for name in self._store.names("waiting")]
        for owner in sorted(owners, key=lambda o: (running[o], self._num_given[o], o)):
            if most_of_owner is not None and running[owner] >= most_of_owner:
                continue
            work = self._claim_of(owner, lease_s)
            if work is not None:
                self._num_given[owner] += 1
                return work
        return None

    def _claim_of(self, owner: str, lease_s: float) -> ClaimedWork | None:
        folder = quote_owner(owner)
        names = self._store.files_after(f"waiting/{folder}", "", _TRIED_MARKS)
        for name in names:
            mark = WorkMark.parse(f"{folder}/{name}")
            work = self._claim(mark, lease_s)
            if work is not None:
                return work
        if not names and self._store.is_local:
            remove_empty_folders(self._store.local_path(f"waiting/{folder}"))
        return None

    def _claim(self, mark: WorkMark, lease_s: float) -> ClaimedWork | None:
        lease = self._claims.claim(mark.id, lease_s)
        if lease is None:
            return None
        if not self._store.exists(f"waiting/{mark.name}"):
            # It was claimed and ended since the mark was listed.
            lease.release()
            return None
        work = ClaimedWork(self.read(mark.id), lease)
        self._store.write(f"running/{mark.name}", b"")
        self._store.remove_file(f"waiting/{mark.name}")
        deadline_s = work.record.deadline_s
        if deadline_s is not None and time.time() > deadline_s:
            self.finish(work, "expired", "its deadline passed before its turn came")
            return None
        return work

    def renew(self, work: ClaimedWork) -> bool:
        """Show that its holder lives; False once another has taken over."""
        return self._claims.renew(work.lease)

    def finish(self, work: ClaimedWork, state: WorkEnd, note: str = "") -> None:
        """Work is over."""
        self._write_end(work.record.id, state, note)
        self._store.remove_file(f"running/{WorkMark.of(work.record).name}")
        self._store.remove_file(f"cancelled/{work.record.id}")
        work.lease.release()

    def give_back(self, work: ClaimedWork) -> None:
        """Work waits again, at its old place."""
        mark = WorkMark.of(work.record)
        self._write_waiting(mark)
        self._store.remove_file(f"running/{mark.name}")
        work.lease.release()

    def cancel(self, work_id: str) -> Literal["cancelled", "asked", "over"]:
        """End work that waits; ask who does it to end it; nothing for work that is over.

        raises: ConfigError if there is no such work
        """
        mark = WorkMark.of(self.read(work_id))
        # The length of a lease is that of a moment: nothing is done under it.
        lease = self._claims.claim(work_id, 60.0)
        if lease is not None:
            try:
                if self._store.exists(f"waiting/{mark.name}"):
                    self._write_end(work_id, "cancelled", "")
                    self._store.remove_file(f"waiting/{mark.name}")
                    return "cancelled"
            finally:
                lease.release()
        if not self._store.exists(f"running/{mark.name}"):
            return "over"
        self._store.write(f"cancelled/{work_id}", b"")
        return "asked"

    def list_cancelled(self) -> list[str]:
        """Running work that somebody wants ended."""
        return self._store.names("cancelled")

    def recover(self, lease_s: float, own_ids: Iterable[str] = ()) -> list[str]:
        """Put back what processes that died had claimed; to be called from time to time.

        own_ids: of work that this process does
        returns: ids of what waits again
        """
        recovered_ids, held_ids = [], set(own_ids)
        for mark in self.list_marks("running", "", _MOST_RUNNING):
            lease = None if mark.id in held_ids else self._claims.claim(mark.id, lease_s)
            if lease is None:
                continue
            if self._store.exists(f"running/{mark.name}"):
                self.give_back(ClaimedWork(self.read(mark.id), lease))
                recovered_ids.append(mark.id)
            else:
                lease.release()
        return recovered_ids

    def _write_end(self, work_id: str, state: WorkEnd, note: str) -> None:
        ended = EndedWork(work_id, state, int(time.time() * 1000))
        self._store.write(f"ended/{end_name(ended)}", json.dumps({"note": note}).encode())


def _record_file(work_id: str) -> str:
    """Folders of a hundred thousand files are slow on some disks."""
    shard = hashlib.sha256(work_id.encode()).hexdigest()[:2]
    return f"records/{shard}/{work_id}.json"
