"""A job that a runner has in hand."""

import asyncio

from serve import pictures
from serve.desk import Turn
from serve.drawing import Event, Preview, Progress
from serve.jobs import Lease, Record


class Running:
    """A job in hand: what of it is not in storage yet."""

    def __init__(self, record: Record, lease: Lease) -> None:
        self.record, self.lease = record, lease
        self.task: asyncio.Task[None] | None = None
        self.turns: list[Turn] = []
        self.steps: dict[int, tuple[int, int]] = {}
        self.previews: dict[int, bytes] = {}
        self.stopping: asyncio.Task[None] | None = None
        self.dirty = False

    def note(self, index: int, event: Event) -> None:
        """Remember progress until it is next written down."""
        if isinstance(event, Progress):
            self.steps[index], self.dirty = (event.step, event.total), True
        if isinstance(event, Preview):
            self.previews[index] = pictures.encode(event.pixels, None, "png")
            self.dirty = True
