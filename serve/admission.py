"""Admission of images: which are refused at once, which wait, which are sampled now.

Work is counted in denoising steps of the pool's first model at its own size: what those of another
model or size cost, replicas measure. At most `places` images are at the replicas at once. All
others wait here, where callers take turns, and not in a replica's first-come queue.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from dreambooth_ray.queue.fair_queue import FairQueue, QueuedWork
from serve.api_errors import APIError, busy_error

_COLD_START_S = 30.0
# Admitted images have to be done in time, though the machine may be busier than it was.
_MARGIN = 1.5
# Sizes that share a replica's time, where a large image has to be done among others.
_TURNS = 2.0


@dataclass(frozen=True)
class RequestWork:
    """A request's images, all of one size.

    steps: denoising steps of each; step_cost: of one of them
    size_px: width and height, None for the model's own: images of one size share steps
    """

    steps: list[int]
    step_cost: float = 1.0
    size_px: tuple[int, int] | None = None

    @property
    def costs_per_image(self) -> list[int]:
        """Of each image."""
        return [compute_steps_cost(num_steps, self.step_cost) for num_steps in self.steps]


def compute_steps_cost(num_steps: int, step_cost: float) -> int:
    """Cost of some steps of an image, at least 1 unless none is left."""
    return math.ceil(num_steps * step_cost)


class Reservation:
    """A place for one image: `async with reservation:` waits for it and gives it back."""

    def __init__(
        self, admission: "AdmissionController", caller: str, num_steps: int, work: RequestWork
    ) -> None:
        self._admission, self.work = admission, work
        self.remaining = compute_steps_cost(num_steps, work.step_cost)
        self.queued_image = QueuedWork(caller, self.remaining)
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> "Reservation":
        try:
            await self.granted
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def position(self) -> int | None:
        """Images that go before it; 0 once it has its place."""
        return (
            0
            if self in self._admission.in_hand
            else self._admission.queue.find_work_position(self.queued_image)
        )

    def set_remaining_steps(self, num_steps: int) -> None:
        """So many of its own steps are left."""
        self.remaining = compute_steps_cost(num_steps, self.work.step_cost)

    def close(self) -> None:
        """Give the place back, or stop waiting for it; may be called again."""
        self._admission.release(self)


class AdmissionController:
    """One pool's images that wait and that are being sampled. For one event loop."""

    def __init__(
        self, batch: int, max_open: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """batch: images a replica takes at once; max_open: images that may wait or be sampled."""
        self.queue, self.in_hand = FairQueue(), set[Reservation]()
        self._reservations: dict[QueuedWork, Reservation] = {}
        self._batch, self._max_open, self._clock = batch, max_open, clock
        self.replicas, self.steps_per_s = 0, 0.0
        self.cold_start_s = _COLD_START_S
        self._cold_since: float | None = None

    @property
    def waiting_steps(self) -> int:
        """Steps of images that have no place yet."""
        return self.queue.waiting_steps

    @property
    def remaining_steps(self) -> int:
        """Steps of all images here."""
        return self.queue.waiting_steps + sum(reservation.remaining for reservation in self.in_hand)

    def set_pool_speed(self, replicas: int, steps_per_s: float) -> None:
        """Set what the pool is now. steps_per_s: of one replica at a full batch; 0 if unknown."""
        now_s = self._clock()
        if replicas == 0 and self._cold_since is None and (self.in_hand or len(self.queue)):
            self._cold_since = now_s
        if replicas and self._cold_since is not None:
            self.cold_start_s, self._cold_since = now_s - self._cold_since, None
        self.replicas = replicas
        self.steps_per_s = steps_per_s or self.steps_per_s
        self._grant_places()

    def estimate_completion_s(self, caller: str, work: RequestWork) -> float:
        """How long the images would take from now; 0 where no speed is known yet."""
        wait_s = 0.0 if self.replicas else self.cold_start_s
        if not self.steps_per_s:
            return wait_s
        steps_ahead = self._count_active_steps_ahead(work) + self.queue.count_steps_ahead(
            caller, sum(work.costs_per_image)
        )
        return (
            wait_s
            + _MARGIN * steps_ahead / self._total_steps_per_s
            + self.estimate_min_duration_s(work)
        )

    def _count_active_steps_ahead(self, work: RequestWork) -> int:
        """Steps in hand that would be done before the images are.

        Sizes take turns of equal time at a replica, so of another size no more than the images'
        own, and the step that is under way; all, where no place is left.
        """
        if len(self.in_hand) >= self._num_places:
            return sum(reservation.remaining for reservation in self.in_hand)
        remaining_by_size: dict[tuple[int, int] | None, int] = {}
        max_steps_by_size: dict[tuple[int, int] | None, int] = {work.size_px: 2**62}
        for reservation in self.in_hand:
            size_px, step_cost = reservation.work.size_px, reservation.work.step_cost
            remaining_by_size[size_px] = remaining_by_size.get(size_px, 0) + reservation.remaining
            turn_steps = sum(work.costs_per_image) + compute_steps_cost(self._batch, step_cost)
            max_steps_by_size[size_px] = max(max_steps_by_size.get(size_px, 0), turn_steps)
        return sum(min(n, max_steps_by_size[size_px]) for size_px, n in remaining_by_size.items())

    def estimate_min_duration_s(self, work: RequestWork) -> float:
        """The same with nobody before them and replicas up: what no waiting makes shorter."""
        if not self.steps_per_s:
            return 0.0
        # An image in a full batch moves a step in the time all of the batch does. Larger ones share
        # a step with few, and take turns with the others.
        sharing_factor = max(1.0, min(self._batch, max(_TURNS, self._batch / work.step_cost)))
        largest_image_s = max(work.costs_per_image) * sharing_factor / self.steps_per_s
        return _MARGIN * max(sum(work.costs_per_image) / self._total_steps_per_s, largest_image_s)

    @property
    def _total_steps_per_s(self) -> float:
        return self.steps_per_s * max(1, self.replicas)

    @property
    def _num_places(self) -> int:
        # With no replica, one image goes through: it is what wakes the pool up.
        return self.replicas * self._batch or 1

    def admit(self, caller: str, work: RequestWork, deadline_s: float) -> list[Reservation]:
        """Admit all images of a request, or refuse all of them.

        raises: APIError 503 with Retry-After, or 400 where coming again would not help
        """
        min_duration_s = self.estimate_min_duration_s(work)
        if min_duration_s > deadline_s:
            error_message = (
                f"deadline_s={deadline_s:g} is too short: this takes about {min_duration_s:.2g} s "
                "with nobody before it; give it longer, or ask for a smaller size, fewer steps or "
                "images"
            )
            raise APIError(400, "deadline_too_short", error_message, param="deadline_s")
        expected_duration_s = self.estimate_completion_s(caller, work)
        num_open_images = len(self.queue) + len(self.in_hand)
        if num_open_images + len(work.steps) > self._max_open:
            error_message = (
                f"{num_open_images} images are under way and {self._max_open} is the most; "
                "come again"
            )
            raise busy_error(error_message, max(1.0, expected_duration_s / 2))
        if expected_duration_s > deadline_s:
            raise busy_error(
                f"this would take about {expected_duration_s:.0f} s and the deadline is "
                f"{deadline_s:g} s; come again, or ask for a smaller size or fewer steps",
                expected_duration_s - deadline_s, "deadline_unreachable",
            )  # fmt: skip
        reservations = [Reservation(self, caller, n, work) for n in work.steps]
        for reservation in reservations:
            self._reservations[reservation.queued_image] = reservation
            self.queue.add(reservation.queued_image)
        self._grant_places()
        return reservations

    def release(self, reservation: Reservation) -> None:
        """Forget an image, whatever its state."""
        self.queue.remove(reservation.queued_image)
        self._reservations.pop(reservation.queued_image, None)
        self.in_hand.discard(reservation)
        if not reservation.granted.done():
            reservation.granted.cancel()
        self._grant_places()

    def _grant_places(self) -> None:
        while len(self.in_hand) < self._num_places:
            queued_image = self.queue.take()
            if queued_image is None:
                return
            reservation = self._reservations.pop(queued_image)
            if reservation.granted.done():
                # Its owner was cancelled a moment ago, and has yet to say so.
                continue
            self.in_hand.add(reservation)
            reservation.granted.set_result(None)
