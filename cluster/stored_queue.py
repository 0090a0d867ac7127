"""Work of a queue in storage as a fleet's workers take it: claimed, kept, ended."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cluster.fleet_queue import FleetEntry
from dreambooth_ray.errors import PERMANENT, DreamBoothError, StorageError, describe_error
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.queue.claims import ClaimedWork
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkEnd, WorkRecord
from dreambooth_ray.storage.error_tolerant_check import ErrorTolerantCheck

# Between looks at a queue in which nothing waited: in a local folder, and elsewhere.
LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 1.0, 10.0
_RENEWALS_A_LEASE = 6
_CLAIM_LOST = "another process has taken it over: storage had not heard of this one in time"


@dataclass
class _HeldWork:
    """Work of this process, and the run that it is; None until that is opened.

    is_lost: whether the last renewal of its claim failed, which is said once
    """

    entry: FleetEntry
    work: ClaimedWork
    run: PreparedRun | None = None
    is_lost: bool = False


class StoredQueue:
    """A queue in storage, as `SlotFleet` and `run_queue` take one. Use it as a context.

    Inside, a thread renews what was claimed, hears of cancelled work, and puts back what processes
    that died had claimed.
    """

    def __init__(
        self,
        queue: WorkQueue,
        prepare: Callable[[WorkRecord], PreparedRun],
        request_stop: Callable[[PreparedRun], None],
        say: Callable[[str], None],
        *,
        lease_s: float,
        retries: int,
        interval_s: float,
        most_at_once: int,
        most_of_owner: int | None = None,
        must_yield: Callable[[], bool] = lambda: False,
    ) -> None:
        """prepare: the run of a record; raises DreamBoothError if it can't be trained

        request_stop: asks a run to end; interval_s: between looks at storage
        most_at_once: claimed by this process; most_of_owner: of one owner's, by all processes
        must_yield: whether nothing more may be begun, as another queue's turn has come
        """
        self._queue, self._prepare, self._request_stop = queue, prepare, request_stop
        self._say, self._lease_s, self._retries = say, lease_s, retries
        self._interval_s, self._most_at_once = interval_s, most_at_once
        self._most_of_owner, self._ahead = most_of_owner, list[FleetEntry]()
        self._held: dict[str, _HeldWork] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._must_yield = must_yield
        self._empty_since_s: float | None = None
        self._num_waiting, self._counted_at_s = 0, -math.inf
        self._thread = threading.Thread(target=self._maintain_claims, name="claims", daemon=True)
        self._entries: dict[str, FleetEntry] = {}

    def __enter__(self) -> "StoredQueue":
        self._queue.requeue_abandoned_work(self._lease_s)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for held_work in list(self._held.values()):
            # Work of a fleet that fails waits for others: now, or once its lease is silent.
            with suppress(StorageError, OSError):
                self.put_back(held_work.entry, 0.0)

    @property
    def entries(self) -> list[FleetEntry]:
        """What was claimed here, once each."""
        return list(self._entries.values())

    def get_prepared_run(self, entry: FleetEntry) -> PreparedRun:
        """The run of an entry that `next` has returned and that has not ended."""
        run = self._held[entry.id].run
        assert run is not None
        return run

    @property
    def is_over(self) -> bool:
        """Whether nothing waited at the last look, and nothing is running here."""
        return self._empty_since_s is not None and not self._held

    def peek(self) -> FleetEntry | None:
        """What `next` will return: claimed, and not begun."""
        if not self._ahead and (entry := self.next()) is not None:
            self._ahead.append(entry)
        return self._ahead[0] if self._ahead else None

    def count_waiting(self, limit: int) -> int:
        """What waits and may be begun, up to `limit`; a moment old, less what was claimed since."""
        now_s = time.monotonic()
        if now_s - self._counted_at_s >= self._interval_s:
            self._counted_at_s = now_s
            self._num_waiting = self._queue.count_waiting(limit, self._most_of_owner)
        return max(0, self._num_waiting)

    def next(self) -> FleetEntry | None:
        """Claim the next work; None if nothing waits, did a moment ago, or enough is claimed."""
        if self._ahead:
            return self._ahead.pop()
        now_s = time.monotonic()
        if len(self._held) >= self._most_at_once:
            return None
        if self._must_yield():
            self._empty_since_s = now_s
            return None
        if self._empty_since_s is not None and now_s - self._empty_since_s < self._interval_s:
            return None
        while (work := self._queue.claim_next(self._lease_s, self._most_of_owner)) is not None:
            self._num_waiting -= 1
            if not self._adopt_claim(work) and (entry := self._prepare_claimed_work(work)):
                return entry
        self._empty_since_s = now_s
        return None

    def _adopt_claim(self, work: ClaimedWork) -> bool:
        """Whether it is what this process is doing: its claim was lost, and nobody else has it."""
        held_work = self._held.get(work.record.id)
        if held_work is not None:
            held_work.work, held_work.is_lost = work, False
            held_work.entry.tries = work.num_failures + 1
        return held_work is not None

    def _prepare_claimed_work(self, work: ClaimedWork) -> FleetEntry | None:
        """None, and its try is over, if its run can't be opened."""
        work_record, start_s = work.record, time.monotonic()
        entry = FleetEntry(work_record.id, work_record.owner, work_record.priority, "running")
        if (earlier_entry := self._entries.get(entry.id)) is not None:
            entry.seconds = earlier_entry.seconds
        entry.tries = work.num_failures + 1
        self._entries[entry.id] = entry
        # Before it is prepared, which may take longer than a lease: a model may be downloaded.
        with self._lock:
            held_work = self._held[entry.id] = _HeldWork(entry, work)
        try:
            held_work.run = self._prepare(work_record)
        except DreamBoothError as reason:
            preparation_error = reason
        else:
            return entry
        may_retry = not isinstance(preparation_error, PERMANENT)
        elapsed_s = time.monotonic() - start_s
        self.finish(entry, describe_error(preparation_error), elapsed_s, may_retry=may_retry)
        self._say(f"{entry.id}: {entry.state} {entry.note}")
        return None

    def finish(
        self, entry: FleetEntry, error: str | None, seconds: float, *, may_retry: bool = True
    ) -> None:
        """As `FleetQueue.finish`; failures are counted over all processes."""
        entry.note = error or ""
        if error is not None and may_retry and entry.tries <= self._retries:
            self._give_back(entry, seconds, has_failed=True)
        else:
            self._finish_work(entry, "done" if error is None else "failed", seconds)

    def stop(self, entry: FleetEntry, note: str, seconds: float) -> None:
        """As `FleetQueue.stop`."""
        entry.note = note
        self._finish_work(entry, "stopped", seconds)

    def put_back(self, entry: FleetEntry, seconds: float) -> None:
        """As `FleetQueue.put_back`."""
        self._give_back(entry, seconds, has_failed=False)

    def withdraw(self, entry: FleetEntry, seconds: float) -> None:
        """Work that no batch can have, which only its captions show, fails here."""
        entry.note = "it can't share a batch with others; train it by itself"
        self._finish_work(entry, "failed", seconds)

    def _give_back(self, entry: FleetEntry, seconds: float, *, has_failed: bool) -> None:
        entry.seconds += seconds
        entry.state = "waiting"
        if not self._queue.give_back(self._pop_claim(entry), has_failed=has_failed):
            self._note_lost_claim(entry)

    def _finish_work(self, entry: FleetEntry, state: WorkEnd, seconds: float) -> None:
        entry.seconds += seconds
        entry.state = "done" if state == "done" else "stopped" if state == "stopped" else "failed"
        if not self._queue.finish(self._pop_claim(entry), state, entry.note):
            self._note_lost_claim(entry)

    @staticmethod
    def _note_lost_claim(entry: FleetEntry) -> None:
        entry.state = "waiting"
        entry.note = _CLAIM_LOST

    def _pop_claim(self, entry: FleetEntry) -> ClaimedWork:
        # Its owner may have another begun now.
        self._empty_since_s = None
        with self._lock:
            return self._held.pop(entry.id).work

    def _maintain_claims(self) -> None:
        claim_renewal_check = ErrorTolerantCheck("renewing claims", self._say)
        cancelled_work_check = ErrorTolerantCheck("looking for cancelled work", self._say)
        renew_every_s = self._lease_s / _RENEWALS_A_LEASE
        renewed_at_s = time.monotonic()
        while not self._ended.wait(min(self._interval_s, renew_every_s)):
            cancelled_work_check.run(self._stop_cancelled)
            if time.monotonic() - renewed_at_s >= renew_every_s:
                renewed_at_s = time.monotonic()
                claim_renewal_check.run(self._renew_all_claims)

    def _stop_cancelled(self) -> None:
        for work_id in self._queue.list_cancelled():
            with self._lock:
                held_work = self._held.get(work_id)
            if held_work is not None and held_work.run is not None:
                self._request_stop(held_work.run)

    def _renew_all_claims(self) -> None:
        with self._lock:
            all_held_work = list(self._held.values())
        for held_work in all_held_work:
            was_lost, held_work.is_lost = held_work.is_lost, not self._queue.renew(held_work.work)
            if held_work.is_lost and not was_lost:
                self._say(f"{held_work.entry.id}: {_CLAIM_LOST}")
        if self._queue.requeue_abandoned_work(self._lease_s):
            self._empty_since_s = None
