"""Claims on durable records: a lease beside each says which process works on it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dreambooth_ray.errors import StorageError
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.storage.lease import Clock, Lease, LeaseFiles, LeaseLostError, LeaseSilenceWatch
from dreambooth_ray.storage.store import Store

# Purpose of a claim that writes a mark which may be missing, and is given back once it is there.
ADDING = "adding"
_PREFIX, _DIGITS = "lease-", 4
# Records that are watched, the newest: of one that ended elsewhere nobody here is told.
_MOST_WATCHED = 10_000


@dataclass(frozen=True)
class ClaimedWork:
    """Work of this process, as long as its lease is renewed. num_failures: tries that failed"""

    record: WorkRecord
    lease: Lease
    num_failures: int = 0


class Claims:
    """Claims of this process, for records that are folders of one store. For several threads.

    A record whose runner has died is claimed once its lease has been silent for its length, counted
    from the first look on; on the machine of the runner at once.
    """

    def __init__(self, records: Store, clock: Clock = time.monotonic) -> None:
        self._records, self._clock = records, clock
        self._watches: dict[str, LeaseSilenceWatch] = {}
        self._lock = threading.Lock()

    def lease_files(self, name: str, lease_s: float) -> LeaseFiles:
        """The leases of a record. lease_s: of those that do not say how long they last"""
        return LeaseFiles(self._records, f"{name}/{_PREFIX}", _DIGITS, self._clock, lease_s)

    def claim(
        self, name: str, lease_s: float, purpose: str = "", *, silent_lease: int | None = None
    ) -> Lease | None:
        """Become the record's runner, if it has none that may live; one of several callers wins.

        purpose: of `Holder`; silent_lease: number of one that is known to be a dead runner's
        raises: StorageError
        """
        lease_files = self.lease_files(name, lease_s)
        with self._lock:
            if name not in self._watches and len(self._watches) >= _MOST_WATCHED:
                self._watches.pop(next(iter(self._watches)))
            silence_watch = self._watches.setdefault(name, LeaseSilenceWatch(self._clock))
        newest_lease = lease_files.read_newest()
        is_known_dead = newest_lease.number == silent_lease
        if not (is_known_dead or silence_watch.is_dead(newest_lease) or newest_lease.is_free):
            return None
        lease = lease_files.take_next_lease(newest_lease, lease_s, purpose=purpose)
        if lease is not None:
            self.forget(name)
        return lease

    def forget(self, name: str) -> None:
        """Watch a record no longer: it is over, or claimed."""
        with self._lock:
            self._watches.pop(name, None)

    def has_shown_life(self, name: str) -> bool:
        """Whether a record's runner has renewed its claim since it was first looked at here."""
        with self._lock:
            silence_watch = self._watches.get(name)
        return silence_watch is not None and silence_watch.has_changed

    @staticmethod
    def renew(lease: Lease) -> bool:
        """Show that the runner lives; False once another has taken over, or its time is up."""
        try:
            lease.renew()
        except LeaseLostError:
            return False
        except (StorageError, OSError):
            return lease.seconds_until_expiry > 0
        return True


def may_lack_work_mark(lease: Lease) -> bool:
    """Whether the work's mark may never have been written: nobody had it, or died adding it."""
    previous_holder = lease.previous_holder
    return previous_holder is None or (
        previous_holder.purpose == ADDING and not previous_holder.released
    )


@contextmanager
def release_lease_at_end(lease: Lease) -> Iterator[None]:
    """Give a lease back after the block, and leave it as it is where the block fails."""
    try:
        yield
        lease.release()
    except BaseException:
        lease.abandon()
        raise
