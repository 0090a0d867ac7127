"""The subjects of a fleet: who is next, what is tried again, what is already done. Starts nothing
by itself.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from dreambooth_ray.errors import PERMANENT, DreamBoothError, describe_error
from dreambooth_ray.queue.owner_turns import OwnerTurns

FleetState = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass
class FleetEntry:
    """A subject and how it stands. seconds: its tries added up."""

    id: str
    owner: str = "nobody"
    priority: int = 0
    state: FleetState = "waiting"
    tries: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass
class FleetQueue:
    """Who waits, runs and is done. Pure: it starts nothing."""

    entries: list[FleetEntry]
    parallel: int
    retries: int
    turns: OwnerTurns = field(default_factory=OwnerTurns)

    def next(self) -> FleetEntry | None:
        """The entry to start now; None if all places are taken or nobody waits."""
        if sum(e.state == "running" for e in self.entries) >= self.parallel:
            return None
        entry = self.turns.take([e for e in self.entries if e.state == "waiting"])
        if entry is not None:
            entry.state = "running"
            entry.tries += 1
        return entry

    def finish(
        self, entry: FleetEntry, error: str | None, seconds: float, *, may_retry: bool = True
    ) -> None:
        """Note how a try ended; a failed one waits again while it has tries left.

        may_retry: whether another try may end otherwise
        """
        entry.seconds += seconds
        entry.note = error or ""
        if error is None:
            entry.state = "done"
        else:
            entry.state = "waiting" if may_retry and entry.tries <= self.retries else "failed"

    def stop(self, entry: FleetEntry, note: str, seconds: float) -> None:
        """Note that a person has stopped a subject's run."""
        entry.seconds += seconds
        entry.state, entry.note = "stopped", note

    def put_back(self, entry: FleetEntry, seconds: float) -> None:
        """Let an entry wait again whose try was cut off through no fault of its own."""
        entry.seconds += seconds
        entry.tries -= 1
        entry.state = "waiting"

    def withdraw(self, entry: FleetEntry, seconds: float) -> None:
        """Let an entry wait for another queue."""
        self.put_back(entry, seconds)
        self.entries.remove(entry)

    @property
    def is_over(self) -> bool:
        """Whether nothing waits or runs."""
        return all(e.state in ("done", "stopped", "failed") for e in self.entries)


class SubjectQueue(Protocol):
    """Who waits, runs and is done, in this process's memory or in storage."""

    @property
    def is_over(self) -> bool:
        """Whether nothing waits or runs."""

    def next(self) -> FleetEntry | None:
        """The entry to start now; None if there is none."""

    def finish(
        self, entry: FleetEntry, error: str | None, seconds: float, *, may_retry: bool = True
    ) -> None:
        """Note how a try ended."""

    def stop(self, entry: FleetEntry, note: str, seconds: float) -> None:
        """Note that a person has stopped a subject's run."""

    def put_back(self, entry: FleetEntry, seconds: float) -> None:
        """Let an entry wait again whose try was cut off through no fault of its own."""

    def withdraw(self, entry: FleetEntry, seconds: float) -> None:
        """Take an entry out that can't be trained here."""


@dataclass(frozen=True)
class TryEnd:
    """How a try ended. note: why it failed, or where it was stopped

    is_permanent: whether another would fail as well
    """

    state: Literal["done", "stopped", "failed"]
    note: str = ""
    is_permanent: bool = False

    @classmethod
    def of_error(cls, error: Exception) -> "TryEnd":
        """A try that failed."""
        return cls("failed", describe_error(error), isinstance(error, PERMANENT))


def end_try(queue: SubjectQueue, entry: FleetEntry, end: TryEnd, seconds: float) -> str:
    """Tell the queue how a try ended; returns a line about it."""
    if end.state == "stopped":
        queue.stop(entry, end.note, seconds)
    else:
        failure_note = end.note if end.state == "failed" else None
        queue.finish(entry, failure_note, seconds, may_retry=not end.is_permanent)
    return f"{entry.id}: {entry.state} {entry.note}".rstrip()


def run_queue(
    queue: SubjectQueue,
    start: Callable[[FleetEntry], Any],
    wait: Callable[[Iterable[Any]], Any],
    read_end: Callable[[Any], TryEnd],
    say: Callable[[str], None],
) -> None:
    """Start the entries of the queue and record how they end, until it is over.

    start: begins an entry's run and returns its handle; wait: blocks until one of the handles has
    ended and returns it, or None after a while
    """
    running: dict[Any, tuple[FleetEntry, float]] = {}
    while not queue.is_over:
        while (entry := queue.next()) is not None:
            start_s = time.monotonic()
            try:
                running[start(entry)] = entry, start_s
            except DreamBoothError as error:
                say(end_try(queue, entry, TryEnd.of_error(error), time.monotonic() - start_s))
            else:
                say(f"{entry.id}: try {entry.tries} begins")
        if running and (run_handle := wait(list(running))) is not None:
            entry, start_s = running.pop(run_handle)
            say(end_try(queue, entry, read_end(run_handle), time.monotonic() - start_s))
