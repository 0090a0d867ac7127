"""Work of a queue in storage as a fleet's workers take it: claimed, kept, ended."""

import threading
import time
from collections.abc import Callable

from cluster.fleet_plan import FleetEntry
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.queue.work_queue import ClaimedWork, WorkQueue
from dreambooth_ray.queue.work_records import WorkEnd, WorkRecord
from dreambooth_ray.storage.persistent_check import PersistentCheck

# Between looks at a queue in which nothing waited: in a local folder, and elsewhere.
LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 1.0, 10.0
_RENEWALS_A_LEASE = 6


class StoredQueue:
    """A queue in storage, as `SlotFleet` and `run_queue` take one. Use it as a context.

    Inside, a thread renews what was claimed, hears of cancelled work, and puts back what processes
    that died had claimed.
    """

    def __init__(
        self,
        queue: WorkQueue,
        open_entry: Callable[[WorkRecord], FleetEntry],
        stop_entry: Callable[[FleetEntry], None],
        say: Callable[[str], None],
        *,
        lease_s: float,
        retries: int,
        interval_s: float,
        most_at_once: int,
        most_of_owner: int | None = None,
    ) -> None:
        """open_entry: of a record; raises DreamBoothError if it can't be trained

        stop_entry: asks the run of an entry to end; interval_s: between looks at storage
        most_at_once: claimed by this process; most_of_owner: of one owner's, by all processes
        """
        self._queue, self._open_entry, self._stop_entry = queue, open_entry, stop_entry
        self._say, self._lease_s, self._retries = say, lease_s, retries
        self._interval_s, self._most_at_once = interval_s, most_at_once
        self._most_of_owner, self._ahead = most_of_owner, list[FleetEntry]()
        self._works: dict[str, tuple[FleetEntry, ClaimedWork]] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._empty_since_s: float | None = None
        self._thread = threading.Thread(target=self._keep, name="claims", daemon=True)
        self.entries: list[FleetEntry] = []

    def __enter__(self) -> "StoredQueue":
        self._queue.recover(self._lease_s)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for entry, _work in list(self._works.values()):
            # Work of a fleet that fails waits for others.
            self.put_back(entry, 0.0)

    @property
    def is_over(self) -> bool:
        """Whether nothing waited at the last look, and nothing is running here."""
        return self._empty_since_s is not None and not self._works

    def peek(self) -> FleetEntry | None:
        """What `next` will return: claimed, and not begun."""
        if not self._ahead and (entry := self.next()) is not None:
            self._ahead.append(entry)
        return self._ahead[0] if self._ahead else None

    def next(self) -> FleetEntry | None:
        """Claim the next work; None if nothing waits, did a moment ago, or enough is claimed."""
        if self._ahead:
            return self._ahead.pop()
        now_s = time.monotonic()
        if len(self._works) >= self._most_at_once:
            return None
        if self._empty_since_s is not None and now_s - self._empty_since_s < self._interval_s:
            return None
        while (work := self._queue.claim_next(self._lease_s, self._most_of_owner)) is not None:
            try:
                entry = self._open_entry(work.record)
            except DreamBoothError as error:
                self._queue.finish(work, "failed", str(error))
                self._say(f"{work.record.id}: failed {error}")
                continue
            entry.state, entry.tries = "running", work.num_tries
            with self._lock:
                self._works[entry.subject.id] = entry, work
            self.entries.append(entry)
            self._empty_since_s = None
            return entry
        self._empty_since_s = now_s
        return None

    def finish(
        self, entry: FleetEntry, error: str | None, seconds: float, *, may_retry: bool = True
    ) -> None:
        """As `FleetQueue.finish`; tries are counted over all processes."""
        entry.note = error or ""
        if error is not None and may_retry and entry.tries <= self._retries:
            self.put_back(entry, seconds)
        else:
            self._end(entry, "done" if error is None else "failed", seconds)

    def stop(self, entry: FleetEntry, note: str, seconds: float) -> None:
        """As `FleetQueue.stop`."""
        entry.note = note
        self._end(entry, "stopped", seconds)

    def put_back(self, entry: FleetEntry, seconds: float) -> None:
        """As `FleetQueue.put_back`."""
        entry.seconds += seconds
        entry.state = "waiting"
        self._queue.give_back(self._take(entry))
        self._empty_since_s = None

    def withdraw(self, entry: FleetEntry, seconds: float) -> None:
        """Work that no batch can have, which only its captions show, fails here."""
        entry.note = "it can't share a batch with others; train it by itself"
        self._end(entry, "failed", seconds)

    def _end(self, entry: FleetEntry, state: WorkEnd, seconds: float) -> None:
        entry.seconds += seconds
        entry.state = "done" if state == "done" else "stopped" if state == "stopped" else "failed"
        self._queue.finish(self._take(entry), state, entry.note)

    def _take(self, entry: FleetEntry) -> ClaimedWork:
        with self._lock:
            return self._works.pop(entry.subject.id)[1]

    def _keep(self) -> None:
        renewal = PersistentCheck("renewing claims", self._say)
        look = PersistentCheck("looking for cancelled work", self._say)
        renew_every_s = self._lease_s / _RENEWALS_A_LEASE
        renewed_at_s = time.monotonic()
        while not self._ended.wait(min(self._interval_s, renew_every_s)):
            look.run(self._stop_cancelled)
            if time.monotonic() - renewed_at_s >= renew_every_s:
                renewed_at_s = time.monotonic()
                renewal.run(self._renew)

    def _stop_cancelled(self) -> None:
        for work_id in self._queue.list_cancelled():
            with self._lock:
                found = self._works.get(work_id)
            if found is not None:
                self._stop_entry(found[0])

    def _renew(self) -> None:
        with self._lock:
            works = [work for _, work in self._works.values()]
        for work in works:
            self._queue.renew(work)
        if self._queue.recover(self._lease_s, [work.record.id for work in works]):
            self._empty_since_s = None
