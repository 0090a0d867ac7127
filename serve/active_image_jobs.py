"""A job that a runner runs now."""

import asyncio

from dreambooth_ray.queue.claims import ClaimedWork
from serve import image_files
from serve.admission import Reservation
from serve.image_job_records import ImageJobRecord
from serve.replica_messages import Event, Preview, SamplingProgress


class ActiveImageJob:
    """A job that runs: what of it is not in storage yet."""

    def __init__(self, record: ImageJobRecord, work: ClaimedWork) -> None:
        self.record, self.work = record, work
        self.task: asyncio.Task[None] | None = None
        self.reservations: list[Reservation] = []
        self.steps: dict[int, tuple[int, int]] = {}
        self.previews: dict[int, bytes] = {}
        self.stop_task: asyncio.Task[None] | None = None
        self.has_unsaved_progress = False

    def record_event(self, index: int, event: Event) -> None:
        """Keep progress until it is next written to storage."""
        if isinstance(event, SamplingProgress):
            self.steps[index], self.has_unsaved_progress = (event.step, event.total), True
        if isinstance(event, Preview):
            self.previews[index] = image_files.encode_image(event.pixels, None, "png")
            self.has_unsaved_progress = True

    def take_progress(self) -> tuple[int, int, dict[int, bytes]]:
        """Steps done, steps in total, and the previews that are not in storage yet."""
        unsaved_previews, self.previews, self.has_unsaved_progress = self.previews, {}, False
        steps_done = sum(s for s, _ in self.steps.values())
        # By the sampler's count: an edit leaves steps out, some solvers take more.
        total_steps = sum(total for _, total in self.steps.values())
        return steps_done, total_steps, unsaved_previews
