"""Claims on durable records: a lease beside each says which process works on it."""

import threading
import time
from dataclasses import dataclass

from dreambooth_ray.errors import StorageError
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.storage.lease import Clock, Lease, LeaseFiles, LeaseLostError, SilenceWatch
from dreambooth_ray.storage.store import Store

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
        self._watches: dict[str, SilenceWatch] = {}
        self._lock = threading.Lock()

    def claim(self, name: str, lease_s: float) -> Lease | None:
        """Become the record's runner, if it has none that may live; one of several callers wins.

        raises: StorageError
        """
        lease_files = LeaseFiles(self._records, f"{name}/{_PREFIX}", _DIGITS, self._clock, lease_s)
        with self._lock:
            if name not in self._watches and len(self._watches) >= _MOST_WATCHED:
                self._watches.pop(next(iter(self._watches)))
            silence_watch = self._watches.setdefault(name, SilenceWatch(self._clock))
        lease_standing = lease_files.read_newest()
        if not (silence_watch.is_dead(lease_standing) or lease_standing.is_free):
            return None
        lease = lease_files.take_next(lease_standing, lease_s)
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
            return lease.seconds_left > 0
        return True
