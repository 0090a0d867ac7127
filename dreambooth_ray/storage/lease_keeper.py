"""A run's lease, kept for the length of a block by two threads: one renews, one looks at the clock.

They are two because a renewal may wait for storage longer than the lease lasts.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.error_tolerant_check import ErrorTolerantCheck
from dreambooth_ray.storage.lease import (
    Clock,
    Lease,
    LeaseExpiredError,
    LeaseFiles,
    LeaseLostError,
    LeaseSilenceWatch,
    LeaseSnapshot,
)
from dreambooth_ray.storage.store import Store

_LONGEST_POLL_S, _POLLS_A_LEASE = 5.0, 12
_CLOCK_INTERVAL_S = 0.5


def get_run_lease_files(run: Store, clock: Clock = time.monotonic) -> LeaseFiles:
    """The leases of a run."""
    return LeaseFiles(run, f"{paths.LEASES}/", clock=clock)


class LeaseWaiter:
    """Waits until a run is free, and takes it."""

    def __init__(
        self,
        files: LeaseFiles,
        lease_s: float,
        patience_s: float = 0.0,
        say: Callable[[str], None] = print,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """patience_s: how long a holder that shows signs of life is waited for all the same"""
        self._files, self._lease_s, self._patience_s = files, lease_s, patience_s
        self._say, self._wait = say, wait
        self._watch, self._has_said = LeaseSilenceWatch(files.clock), False

    def take(self, at_least: int = 1) -> Lease:
        """The next lease, once there is no holder that lives.

        at_least: a lower bound for its number
        raises: StorageError if another process holds it
        """
        waiting_began_s = self._files.clock()
        while True:
            newest_lease = self._files.read_newest()
            is_dead = self._watch.is_dead(newest_lease)
            if newest_lease.is_free or is_dead:
                lease = self._files.take_next_lease(newest_lease, self._lease_s, at_least)
                if lease is not None:
                    return lease
                continue  # another was quicker; the next look shows who
            self._refuse_or_report_wait(newest_lease, self._files.clock() - waiting_began_s)
            self._wait(min(_LONGEST_POLL_S, self._lease_s / _POLLS_A_LEASE))

    def _refuse_or_report_wait(self, newest_lease: LeaseSnapshot, waited_s: float) -> None:
        holder = newest_lease.holder
        assert holder is not None
        uri = self._files.store.uri
        holder_name = f"process {holder.pid} on {holder.host or 'a host'}"
        is_alive = self._watch.has_changed or holder.is_here()
        if is_alive and waited_s >= self._patience_s:
            raise StorageError(
                f"{uri} is being trained by {holder_name}; wait for it, end it, or choose another "
                "run_id"
            )
        if not self._has_said:
            self._has_said = True
            self._say(
                f"{uri} is held by {holder_name}, which has not said that it ended; waiting up to "
                f"{holder.lease_s:g} s for a sign of life"
            )


class LeaseKeeper:
    """The lease is held inside the `with` block; its number is `number`.

    raises: StorageError on entry, if somebody else holds it; LeaseLostError on exit, if it was lost
    """

    def __init__(self, waiter: LeaseWaiter, say: Callable[[str], None], at_least: int = 1) -> None:
        self._waiter, self._say, self._at_least = waiter, say, at_least
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._endings: list[Callable[[], None]] = []
        self._error: LeaseLostError | None = None
        self._threads = [
            threading.Thread(target=target, name=thread_name, daemon=True)
            for thread_name, target in (("lease", self._renew), ("lease clock", self._watch_clock))
        ]

    def __enter__(self) -> "LeaseKeeper":
        self._lease = self._waiter.take(self._at_least)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._error is not None:
            if kind is None or issubclass(kind, Exception):
                raise self._error from error
            return
        for thread in self._threads:
            thread.join()
        ErrorTolerantCheck("giving the lease back", self._say).run(self._lease.release)

    @property
    def number(self) -> int:
        """Of the lease."""
        return self._lease.number

    def check(self) -> None:
        """raises LeaseLostError once the lease is lost: nothing more may be begun."""
        if self._error is not None:
            raise self._error

    @contextmanager
    def calling_on_loss(self, end: Callable[[], None]) -> Iterator[None]:
        """Within the block `end` is called, from another thread, if the lease is lost.

        raises: LeaseLostError at the end of a block that ended well, if it is
        """
        with self._lock:
            self._endings.append(end)
            is_lost = self._error is not None
        if is_lost:
            end()
        try:
            yield
        finally:
            with self._lock:
                self._endings.remove(end)
        self.check()

    def _renew(self) -> None:
        error_tolerant_renewal = ErrorTolerantCheck("renewing the lease", self._say)
        renewal_pause_s = self._lease.renew_interval_s
        while not self._stop.wait(renewal_pause_s) and self._error is None:
            renewal_began_s = time.monotonic()
            error_tolerant_renewal.run(self._renew_once)
            # One that took long says little of now.
            renewal_pause_s = max(
                0.1, self._lease.renew_interval_s - (time.monotonic() - renewal_began_s)
            )

    def _renew_once(self) -> None:
        try:
            self._lease.renew()
        except LeaseLostError as error:
            self._lose(error)

    def _watch_clock(self) -> None:
        while not self._stop.wait(min(_CLOCK_INTERVAL_S, self._lease.renew_interval_s)):
            if self._lease.seconds_until_expiry <= 0:
                self._lose(
                    LeaseExpiredError(
                        "storage could not be told for too long that this process works on the "
                        "run, and another may have taken it over; `dreambooth resume` goes on "
                        "from the last checkpoint"
                    )
                )
                return

    def _lose(self, error: LeaseLostError) -> None:
        with self._lock:
            if self._error is not None or self._stop.is_set():
                return
            self._error = error
            self._lease.abandon()
            lost_lease_callbacks = list(self._endings)
        for lost_lease_callback in lost_lease_callbacks:
            lost_lease_callback()
