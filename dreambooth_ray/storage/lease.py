"""One process at a time works on a thing: a lease, a numbered file that its holder renews.

Each holder creates the next number by conditional write; of several that try, one wins. Clocks of
machines differ, so nobody reads another's: whoever waits watches the file on its own monotonic
clock, and a holder whose file has not changed for `lease_s` is taken for dead. The holder counts
from the beginning of its last renewal, and gives up a little earlier (`_HOLD_SHARE`).

A holder may still be frozen at any instruction and wake up when another has long gone on. No clock
can exclude that; the number does: what a holder writes carries it, and what an older number wrote
beyond the point at which a newer one took over is ignored (`fence.py`).
"""

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.holder import (
    DEFAULT_LEASE_S,
    Holder,
    make_process_holder,
    parse_lease_holder,
)
from dreambooth_ray.storage.store import Store

Clock = Callable[[], float]
# Of lease_s: how often a holder renews, and when it gives up. The rest is for clocks that run at
# other rates, and for workers that take a moment to end.
_RENEW_SHARE, _HOLD_SHARE = 1 / 6, 5 / 6
# Leases of this process that are known to be nobody's: giving them back has failed.
_dropped_nonces: set[str] = set()


class LeaseLostError(StorageError):
    """Another process has taken over."""


class LeaseExpiredError(LeaseLostError):
    """Storage has not heard of the holder in time; nobody need have taken over."""


@dataclass(frozen=True)
class LeaseSnapshot:
    """The newest lease of a thing. number: 0 and no holder where there is none."""

    number: int = 0
    content: bytes = b""
    holder: Holder | None = None

    @property
    def is_free(self) -> bool:
        """Never held, given back, or held by a process of this machine that has ended."""
        holder = self.holder
        if holder is None or holder.released or holder.nonce in _dropped_nonces:
            return True
        return holder.is_dead_here()


class LeaseSilenceWatch:
    """For how long the holder of one thing has shown no sign of life, as seen from here."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seen: tuple[int, bytes] | None = None
        self._since_s = 0.0
        self.has_changed = False

    def is_dead(self, newest_lease: LeaseSnapshot) -> bool:
        """Whether it, read just now, has been the same for its length."""
        now_s, number_and_content = self._clock(), (newest_lease.number, newest_lease.content)
        if number_and_content != self._seen:
            self.has_changed = self._seen is not None
            self._seen, self._since_s = number_and_content, now_s
        return now_s - self._since_s >= (newest_lease.holder or Holder()).lease_s


class LeaseFiles:
    """The leases of one thing: its numbered files."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        digits: int = 6,
        clock: Clock = time.monotonic,
        default_lease_s: float = DEFAULT_LEASE_S,
    ) -> None:
        """prefix: of the files' names, a folder included: "leases/", "job_1/lease-"
        default_lease_s: of leases that do not say how long they last
        """
        self.store, self.clock, self._default_lease_s = store, clock, default_lease_s
        self._prefix, self._digits = prefix, digits
        self._folder, _, file_prefix = prefix.rpartition("/")
        self._name = re.compile(rf"{re.escape(file_prefix)}(\d{{{digits}}})\.json")

    def lease_file_name(self, number: int) -> str:
        """The lease of that number."""
        return f"{self._prefix}{number:0{self._digits}d}.json"

    def newest_lease_number(self) -> int | None:
        """None where there is no lease."""
        matches = (self._name.fullmatch(name) for name in self.store.names(self._folder))
        return max((int(match.group(1)) for match in matches if match), default=None)

    def read_newest(self) -> LeaseSnapshot:
        """How the thing stands now."""
        lease_number = self.newest_lease_number()
        if lease_number is None:
            return LeaseSnapshot()
        try:
            lease_content = self.store.read(self.lease_file_name(lease_number))
        except FileNotFoundError:  # its successor is there by now: the next look shows it
            lease_content = b""
        return LeaseSnapshot(
            lease_number, lease_content, parse_lease_holder(lease_content, self._default_lease_s)
        )

    def take_next_lease(
        self, newest_lease: LeaseSnapshot, lease_s: float, at_least: int = 1, purpose: str = ""
    ) -> "Lease | None":
        """Follow a holder that is gone; None if another was quicker.

        at_least: a lower bound for the number; purpose: of `Holder`
        """
        lease_number = max(newest_lease.number + 1, at_least)
        holder = make_process_holder(lease_s, purpose)
        write_began_s = self.clock()
        try:
            if not self.store.create(self.lease_file_name(lease_number), holder.as_json()):
                return None
        except BaseException:
            # Without an answer nobody knows whether the lease is there; then nobody holds it. Not
            # said before, or another thread of this process would take a lease just made for free.
            _dropped_nonces.add(holder.nonce)
            raise
        if newest_lease.holder is not None:
            # Tidiness: the highest number counts.
            with contextlib.suppress(StorageError, OSError):
                self.store.remove(self.lease_file_name(newest_lease.number))
        return Lease(self, lease_number, holder, write_began_s, newest_lease.holder)


class Lease:
    """A thing held by this process, as long as it renews. Starts no thread."""

    def __init__(
        self,
        files: LeaseFiles,
        number: int,
        holder: Holder,
        renewed_at_s: float,
        previous_holder: Holder | None = None,
    ) -> None:
        """renewed_at_s: when its first write began, by the clock of `files`
        previous_holder: of the lease before; None if there was none
        """
        self.number, self.previous_holder = number, previous_holder
        self._files, self._holder, self._renewed_at_s = files, holder, renewed_at_s
        self._write_lock = threading.Lock()

    @property
    def renew_interval_s(self) -> float:
        """Seconds between renewals."""
        return self._holder.lease_s * _RENEW_SHARE

    @property
    def seconds_until_expiry(self) -> float:
        """Until others may take its holder for dead; at 0 the holder has to stop."""
        hold_s = self._holder.lease_s * _HOLD_SHARE
        return self._renewed_at_s + hold_s - self._files.clock()

    def renew(self) -> None:
        """Show that the holder lives; nothing once it is given back.

        raises: LeaseLostError if another has taken over, StorageError or OSError
        """
        with self._write_lock:
            if self._holder.nonce in _dropped_nonces:
                return
            renewal_began_s = self._files.clock()
            try:
                self._check_not_lost()
            except LeaseLostError:
                # Also where this clock stood still: nothing is written by this lease any more.
                self._renewed_at_s = -math.inf
                raise
            self._holder = self._holder.renewed()
            self._files.store.write(
                self._files.lease_file_name(self.number), self._holder.as_json()
            )
            self._renewed_at_s = renewal_began_s

    def _check_not_lost(self) -> None:
        """By number, and by its file: what is removed and made anew counts from the beginning."""
        if (self._files.newest_lease_number() or 0) > self.number:
            raise LeaseLostError(
                f"{self._files.store.uri} has been taken over by another process while this one "
                "was silent, and two would spoil it; that one goes on"
            )
        if not self._is_file_own():
            raise LeaseLostError(
                f"{self._files.store.uri} has been removed by another process while this one was "
                "silent; what is there now, if anything, is not this one's"
            )

    def _is_file_own(self) -> bool:
        try:
            content = self._files.store.read(self._files.lease_file_name(self.number))
        except FileNotFoundError:
            return False
        # One without a nonce is damaged, and written anew.
        return parse_lease_holder(content).nonce in ("", self._holder.nonce)

    def release(self) -> None:
        """Give it back: whoever comes next need not wait.

        raises: StorageError or OSError; this process may take it again all the same
        """
        self.abandon()
        # After a renewal that is on its way: its answer would be the last word.
        with self._write_lock:
            if not self._is_file_own():
                return  # followed, or removed and perhaps another's by now
            released_content = replace(self._holder.renewed(), released=True).as_json()
            self._files.store.write(self._files.lease_file_name(self.number), released_content)

    def abandon(self) -> None:
        """Hold it no more, without a word to others: they have to wait, this process need not."""
        _dropped_nonces.add(self._holder.nonce)
