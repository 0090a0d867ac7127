"""A durable queue of work that any process may add to, look at, claim from: files of one store.

records/{shard}/{id}.json                       what is to be done; written once, by who adds it
waiting/{owner}/{rank}/{second}/{ms}-{id}       it waits; the name says all that its turn depends on
running/{owner}/{rank}/{second}/{ms}-{id}       somebody has claimed it
claims/{id}/lease-0001.json ...                 who; a number more each time
failures/{id}                                   how many of its tries have failed
ended/{second}/{ms}-{state}-{id}                how it ended, and when; its content says why
cancelled/{id}                                  somebody wants it ended, while it runs

Leases decide, marks are hints: who claims takes the lease of what a mark names, then looks whether
the mark is still there. A process that dies anywhere leaves a lease that falls silent, and
`requeue_abandoned_work` puts its work back.

No folder grows with the queue: marks lie by second, so that a look reads few of them, and an
object store lists from a name on. rank: higher priorities first.
"""

import json
import time
from collections import Counter
from contextlib import suppress
from typing import Literal
from urllib.parse import unquote

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.claims import (
    ADDING,
    ClaimedWork,
    Claims,
    may_lack_work_mark,
    release_lease_at_end,
)
from dreambooth_ray.queue.work_records import (
    EndedWork,
    WorkEnd,
    WorkMark,
    WorkRecord,
    ended_mark_name,
    parse_ended_mark_name,
    quote_owner,
    work_record_path,
)
from dreambooth_ray.storage.lease import Clock, Lease
from dreambooth_ray.storage.local_files import remove_empty_folder_tree
from dreambooth_ray.storage.store import Store

_MOST_RUNNING = 10_000
# Marks of one owner that are read at once for a claim: others may claim the first meanwhile.
_MARKS_A_LOOK = 16
# Of others' claims, whose leases are read at a time: many processes watch each other.
_WATCHED_CLAIMS = 128
_CANCEL_LEASE_S = 60.0


class WorkQueue:
    """A queue in a folder of storage. For several threads. raises: StorageError, in all of it"""

    def __init__(
        self, store: Store, clock: Clock = time.monotonic, claims: Store | None = None
    ) -> None:
        """clock: that others' leases are watched by; claims: where they lie instead"""
        self._store = store
        self._claims = Claims(store.sub("claims") if claims is None else claims, clock)
        self._num_given: Counter[str] = Counter()
        self._watched_up_to, self.num_silent = "", 0
        self._held_ids: set[str] = set()

    def add(self, record: WorkRecord) -> bool:
        """Put work at the end of its owner's; False if that very work was added before.

        raises: ConfigError if other work of that id was
        """
        if self._store.create(work_record_path(record.id), record.model_dump_json().encode()):
            self._write_waiting(WorkMark.of(record))
            return True
        stored_record = self.read(record.id)
        if not stored_record.is_same_work(record):
            raise ConfigError(
                f"{record.id!r} is in the queue {self._store.uri} with other settings, or was; ids "
                "name one piece of work: take another one"
            )
        self._restore_missing_mark(stored_record)
        return False

    def _restore_missing_mark(self, record: WorkRecord) -> None:
        """Who added it may have died before its mark was written."""
        lease = self._claims.claim(record.id, _CANCEL_LEASE_S, ADDING)
        if lease is None:
            return
        with release_lease_at_end(lease):
            if may_lack_work_mark(lease):
                self._write_waiting(WorkMark.of(record))

    def _write_waiting(self, mark: WorkMark) -> None:
        while True:
            with suppress(FileNotFoundError):  # its folder was empty a moment ago, and tidied away
                self._store.write(f"waiting/{mark.name}", b"")
                return

    def has_work(self, work_id: str) -> bool:
        """Whether work of that id was ever added."""
        return self._store.exists(work_record_path(work_id))

    def read(self, work_id: str) -> WorkRecord:
        """raises: ConfigError if there is no such work, or a newer version has added it"""
        try:
            record_json = self._store.read(work_record_path(work_id))
        except FileNotFoundError as error:
            raise ConfigError(f"no work {work_id!r} in the queue {self._store.uri}") from error
        return WorkRecord.parse(record_json, f"{self._store.uri}/{work_record_path(work_id)}")

    def list_marks(
        self, state: Literal["waiting", "running"], after: str = "", limit: int = 50
    ) -> list[WorkMark]:
        """A page, by owner and turn. after: `WorkMark.name` of the last one seen"""
        return [WorkMark.parse(name) for name in self._store.files_after(state, after, limit)]

    def list_ended(self, after: str = "", limit: int = 50) -> list[EndedWork]:
        """A page, the earliest first, without notes. after: `ended_mark_name` of the last"""
        return list(map(parse_ended_mark_name, self._store.files_after("ended", after, limit)))

    def read_end_note(self, ended: EndedWork) -> str:
        """Why work ended as it did."""
        return str(json.loads(self._store.read(f"ended/{ended_mark_name(ended)}"))["note"])

    def count_open_work(self, limit: int) -> tuple[int, int]:
        """What runs and what waits, up to `limit` of both; one request for each 1,000."""
        # Nothing but `waiting` comes after `running`.
        states = [name.partition("/")[0] for name in self._store.files_after("", "running", limit)]
        return states.count("running"), states.count("waiting")

    def count_waiting(self, limit: int, most_of_owner: int | None = None) -> int:
        """Of what waits, how much may be begun, up to `limit`. most_of_owner: of `claim_next`"""
        if most_of_owner is None:
            return len(self._store.files_after("waiting", "", limit))
        running_counts, num_waiting = self._count_running_by_owner(), 0
        for folder in self._store.names("waiting"):
            num_allowed = min(most_of_owner - running_counts[unquote(folder)], limit - num_waiting)
            if num_allowed > 0:
                num_waiting += len(self._store.files_after(f"waiting/{folder}", "", num_allowed))
        return num_waiting

    def _count_running_by_owner(self) -> Counter[str]:
        return Counter(mark.owner for mark in self.list_marks("running", "", _MOST_RUNNING))

    def claim_next(self, lease_s: float, most_of_owner: int | None = None) -> ClaimedWork | None:
        """The next work, now this process's: of the owner of whom least is running.

        most_of_owner: how much of one owner's may run at once; None is no limit
        returns: None if nothing waits that may be begun
        """
        running_counts = self._count_running_by_owner()
        owners = [unquote(name) for name in self._store.names("waiting")]
        for owner in sorted(owners, key=lambda o: (running_counts[o], self._num_given[o], o)):
            if most_of_owner is not None and running_counts[owner] >= most_of_owner:
                continue
            if claimed_work := self._claim_from_owner(owner, lease_s):
                self._num_given[owner] += 1
                return claimed_work
        return None

    def _claim_from_owner(self, owner: str, lease_s: float) -> ClaimedWork | None:
        folder, last_mark = quote_owner(owner), ""
        while mark_names := self._store.files_after(f"waiting/{folder}", last_mark, _MARKS_A_LOOK):
            for mark_name in mark_names:
                if claimed_work := self.claim(WorkMark.parse(f"{folder}/{mark_name}"), lease_s):
                    return claimed_work
            last_mark = mark_names[-1]
        if not last_mark and self._store.is_local:
            remove_empty_folder_tree(self._store.local_path(f"waiting/{folder}"))
        return None

    def claim(self, mark: WorkMark, lease_s: float) -> ClaimedWork | None:
        """That work, now this process's; None if it is another's, or over."""
        lease = self._claims.claim(mark.id, lease_s)
        if lease is None:
            return None
        try:
            return self._move_to_running(mark, lease)
        except BaseException:
            self._held_ids.discard(mark.id)
            lease.abandon()  # whoever comes next need not wait for the end of this process
            raise

    def _move_to_running(self, mark: WorkMark, lease: Lease) -> ClaimedWork | None:
        if not self._store.exists(f"waiting/{mark.name}"):
            lease.release()  # it was claimed and ended since the mark was listed
            return None
        # Who is the first to have it need not ask.
        num_failures = self._count_failures(mark.id) if lease.number > 1 else 0
        claimed_work = ClaimedWork(self.read(mark.id), lease, num_failures)
        self._held_ids.add(mark.id)
        self._store.write(f"running/{mark.name}", b"")
        self._store.remove_file(f"waiting/{mark.name}")
        deadline_s = claimed_work.record.deadline_s
        if deadline_s is not None and time.time() > deadline_s:
            self.finish(claimed_work, "expired", "its deadline passed before its turn came")
            return None
        return claimed_work

    def _count_failures(self, work_id: str) -> int:
        try:
            return int(self._store.read(f"failures/{work_id}"))
        except FileNotFoundError:
            return 0

    def renew(self, work: ClaimedWork) -> bool:
        """Show that its holder lives; False once another has taken over."""
        if self._claims.renew(work.lease):
            return True
        self._held_ids.discard(work.record.id)
        return False

    def _still_holds_lease(self, work: ClaimedWork) -> bool:
        # Before its time is up nobody takes over.
        return work.lease.seconds_until_expiry > 0 or self.renew(work)

    def finish(self, work: ClaimedWork, state: WorkEnd, note: str = "") -> bool:
        """Work is over; False, and nothing is changed, where another has taken over."""
        self._held_ids.discard(work.record.id)
        if not self._still_holds_lease(work):
            return False
        self._write_end(work.record.id, state, note)
        self._store.remove_file(f"running/{WorkMark.of(work.record).name}")
        self._store.remove_file(f"cancelled/{work.record.id}")
        if work.num_failures:
            self._store.remove_file(f"failures/{work.record.id}")
        work.lease.release()
        return True

    def give_back(self, work: ClaimedWork, *, has_failed: bool = False) -> bool:
        """Work waits again, at its old place; False as `finish`.

        has_failed: whether the try counts, as one that was cut off does not
        """
        self._held_ids.discard(work.record.id)
        if not self._still_holds_lease(work):
            return False
        if has_failed:
            self._store.write(f"failures/{work.record.id}", str(work.num_failures + 1).encode())
        mark = WorkMark.of(work.record)
        self._write_waiting(mark)
        self._store.remove_file(f"running/{mark.name}")
        work.lease.release()
        return True

    def cancel(self, work_id: str) -> Literal["cancelled", "asked", "over"]:
        """End work that waits; ask who does it to end it; nothing for work that is over.

        raises: ConfigError if there is no such work
        """
        mark = WorkMark.of(self.read(work_id))
        lease = self._claims.claim(work_id, _CANCEL_LEASE_S)
        if lease is not None:
            try:
                if self._store.exists(f"waiting/{mark.name}") or may_lack_work_mark(lease):
                    self._write_end(work_id, "cancelled", "")
                    self._store.remove_file(f"waiting/{mark.name}")
                    return "cancelled"
            finally:
                lease.release()
        # It always has a mark until it is over, and may change from one to the other meanwhile.
        open_work_states = ("waiting", "running", "waiting")
        if not any(self._store.exists(f"{state}/{mark.name}") for state in open_work_states):
            return "over"
        self._store.write(f"cancelled/{work_id}", b"")
        return "asked"

    def list_cancelled(self) -> list[str]:
        """Running work that somebody wants ended."""
        return self._store.names("cancelled")

    def requeue_abandoned_work(self, lease_s: float) -> list[str]:
        """Put back what processes that died had claimed; to be called from time to time.

        Each call looks at the next few claims; `num_silent` counts those not heard of yet.
        returns: ids of what waits again
        """
        recovered_ids, num_silent_claims = [], 0
        marks = self.list_marks("running", self._watched_up_to, _WATCHED_CLAIMS)
        self._watched_up_to = marks[-1].name if len(marks) == _WATCHED_CLAIMS else ""
        for mark in marks:
            if mark.id in self._held_ids:
                continue
            lease = self._claims.claim(mark.id, lease_s)
            if lease is None:
                num_silent_claims += not self._claims.has_shown_life(mark.id)
            elif self._store.exists(f"running/{mark.name}"):
                self.give_back(ClaimedWork(self.read(mark.id), lease))
                recovered_ids.append(mark.id)
            else:
                lease.release()
        self.num_silent = num_silent_claims
        return recovered_ids

    def _write_end(self, work_id: str, state: WorkEnd, note: str) -> None:
        mark_name = ended_mark_name(EndedWork(work_id, state, int(time.time() * 1000)))
        self._store.write(f"ended/{mark_name}", json.dumps({"note": note}).encode())
