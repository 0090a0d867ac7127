"""Admission of images: which are refused at once, which wait, which are sampled now.

Work is counted in denoising steps. At most `places` images are at the replicas at once. All others
wait here, where callers take turns, and not in a replica's first-come queue.
"""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from dreambooth_ray.queue.fair_queue import FairQueue, QueuedWork
from serve.api_errors import APIError, busy_error

_COLD_START_S = 30.0
# Admitted images have to be done in time, though the machine may be busier than it was.
_MARGIN = 1.5


class Reservation:
    """A place for one image: `async with reservation:` waits for it and gives it back."""

    def __init__(self, admission: "AdmissionController", caller: str, cost: int) -> None:
        self._admission = admission
        self.queued_image, self.remaining = QueuedWork(caller, cost), cost
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
            else self._admission.queue.position(self.queued_image)
        )

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
        return self.queue.steps

    @property
    def remaining_steps(self) -> int:
        """Steps of all images here."""
        return self.queue.steps + sum(reservation.remaining for reservation in self.in_hand)

    def set_replicas(self, replicas: int, steps_per_s: float) -> None:
        """Set what the pool is now. steps_per_s: of one replica at a full batch; 0 if unknown."""
        now_s = self._clock()
        if replicas == 0 and self._cold_since is None and (self.in_hand or len(self.queue)):
            self._cold_since = now_s
        if replicas and self._cold_since is not None:
            self.cold_start_s, self._cold_since = now_s - self._cold_since, None
        self.replicas = replicas
        self.steps_per_s = steps_per_s or self.steps_per_s
        self._grant_places()

    def estimate_s(self, caller: str, costs: list[int]) -> float:
        """How long the images would take from now; 0 where no speed is known yet."""
        wait_s = 0.0 if self.replicas else self.cold_start_s
        if not self.steps_per_s:
            return wait_s
        backlog = sum(t.remaining for t in self.in_hand) + self.queue.count_steps_ahead(
            caller, sum(costs)
        )
        return wait_s + _MARGIN * backlog / self._total_steps_per_s + self.estimate_idle_s(costs)

    def estimate_idle_s(self, costs: list[int]) -> float:
        """The same with nobody before them and replicas up: what no waiting makes shorter."""
        if not self.steps_per_s:
            return 0.0
        # An image in a full batch moves a step in the time all of the batch does.
        alone_s = max(costs) * self._batch / self.steps_per_s
        return _MARGIN * max(sum(costs) / self._total_steps_per_s, alone_s)

    @property
    def _total_steps_per_s(self) -> float:
        return self.steps_per_s * max(1, self.replicas)

    def admit(self, caller: str, costs: list[int], deadline_s: float) -> list[Reservation]:
        """Admit images of these costs, or refuse all of them.

        raises: APIError 503 with Retry-After, or 400 where coming again would not help
        """
        idle_s = self.estimate_idle_s(costs)
        if idle_s > deadline_s:
            text = (
                f"deadline_s={deadline_s:g} is too short: this takes about {idle_s:.2g} s with "
                "nobody before it; give it longer, or ask for fewer steps or images"
            )
            raise APIError(400, "deadline_too_short", text, param="deadline_s")
        estimate_s = self.estimate_s(caller, costs)
        num_open = len(self.queue) + len(self.in_hand)
        if num_open + len(costs) > self._max_open:
            text = f"{num_open} images are under way and {self._max_open} is the most; come again"
            raise busy_error(text, max(1.0, estimate_s / 2))
        if estimate_s > deadline_s:
            raise busy_error(
                f"this would take about {estimate_s:.0f} s and the deadline is {deadline_s:g} s; "
                "come again, or ask for fewer steps",
                estimate_s - deadline_s, "deadline_unreachable",
            )  # fmt: skip
        reservations = [Reservation(self, caller, cost) for cost in costs]
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
        # With no replica, one image goes through: it is what wakes the pool up.
        places = self.replicas * self._batch or 1
        while len(self.in_hand) < places:
            queued_image = self.queue.take()
            if queued_image is None:
                return
            reservation = self._reservations.pop(queued_image)
            if reservation.granted.done():
                # Its owner was cancelled a moment ago, and has yet to say so.
                continue
            self.in_hand.add(reservation)
            reservation.granted.set_result(None)
