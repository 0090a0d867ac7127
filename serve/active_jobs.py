"""A job that a runner has in hand."""

import asyncio

from serve import image_files
from serve.admission import Reservation
from serve.job_store import JobLease, JobRecord
from serve.replica_messages import Event, Preview, Progress


class ActiveJob:
    """A job in hand: what of it is not in storage yet."""

    def __init__(self, record: JobRecord, lease: JobLease) -> None:
        self.record, self.lease = record, lease
        self.task: asyncio.Task[None] | None = None
        self.turns: list[Reservation] = []
        self.steps: dict[int, tuple[int, int]] = {}
        self.previews: dict[int, bytes] = {}
        self.stopping: asyncio.Task[None] | None = None
        self.dirty = False

    def note(self, index: int, event: Event) -> None:
        """Remember progress until it is next written down."""
        if isinstance(event, Progress):
            self.steps[index], self.dirty = (event.step, event.total), True
        if isinstance(event, Preview):
            self.previews[index] = image_files.encode(event.pixels, None, "png")
            self.dirty = True
