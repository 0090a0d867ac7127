"""Admission and turns: who is refused at once, who waits, who draws now.

Work is counted in denoising steps. At most `places` images are in hand, so that what waits
waits here, where callers take turns, and not in a replica's first-come queue.
"""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from serve.api_errors import APIError, busy
from serve.fairness import FairQueue, Waiting

_COLD_START_S = 30.0
# Who is let in is to be done in time, though the machine may be busier than it was.
_MARGIN = 1.5


class Reservation:
    """An image's way through the desk: `async with turn:` waits for a place and gives it back."""

    def __init__(self, desk: "AdmissionController", caller: str, cost: int) -> None:
        self._desk = desk
        self.waiting, self.remaining = Waiting(caller, cost), cost
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
        """Images that go before it; 0 once it is in hand."""
        return 0 if self in self._desk.in_hand else self._desk.queue.position(self.waiting)

    def close(self) -> None:
        """Give back the place, or the wish for one; may be called again."""
        self._desk.leave(self)


class AdmissionController:
    """One pool's images that wait and that are in hand. For one event loop."""

    def __init__(
        self, batch: int, max_open: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """batch: images a replica has in hand; max_open: images that may be here at once."""
        self.queue, self.in_hand = FairQueue(), set[Reservation]()
        self._turns: dict[Waiting, Reservation] = {}
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
        return self.queue.steps + sum(turn.remaining for turn in self.in_hand)

    def set_replicas(self, replicas: int, steps_per_s: float) -> None:
        """What the pool is now. steps_per_s: of one replica at a full batch; 0 if unknown."""
        now = self._clock()
        if replicas == 0 and self._cold_since is None and (self.in_hand or len(self.queue)):
            self._cold_since = now
        if replicas and self._cold_since is not None:
            self.cold_start_s, self._cold_since = now - self._cold_since, None
        self.replicas = replicas
        self.steps_per_s = steps_per_s or self.steps_per_s
        self._grant()

    def estimate_s(self, caller: str, costs: list[int]) -> float:
        """How long the images would take from now; 0 where no speed is known yet."""
        wait_s = 0.0 if self.replicas else self.cold_start_s
        if not self.steps_per_s:
            return wait_s
        backlog = sum(t.remaining for t in self.in_hand) + self.queue.ahead(caller, sum(costs))
        return wait_s + _MARGIN * backlog / self._rate + self.idle_s(costs)

    def idle_s(self, costs: list[int]) -> float:
        """The same with nobody before them and replicas up: what no waiting makes shorter."""
        if not self.steps_per_s:
            return 0.0
        # An image in a full batch moves a step in the time all of the batch does.
        alone_s = max(costs) * self._batch / self.steps_per_s
        return _MARGIN * max(sum(costs) / self._rate, alone_s)

    @property
    def _rate(self) -> float:
        return self.steps_per_s * max(1, self.replicas)

    def enter(self, caller: str, costs: list[int], deadline_s: float) -> list[Reservation]:
        """Take images of these costs, or refuse all of them.

        raises: Refusal 503 with Retry-After, or 400 where coming again would not help
        """
        idle_s = self.idle_s(costs)
        if idle_s > deadline_s:
            text = (
                f"deadline_s={deadline_s:g} is too short: this takes about {idle_s:.2g} s with "
                "nobody before it; give it longer, or ask for fewer steps or images"
            )
            raise APIError(400, "deadline_too_short", text, param="deadline_s")
        estimate_s = self.estimate_s(caller, costs)
        opened = len(self.queue) + len(self.in_hand)
        if opened + len(costs) > self._max_open:
            text = f"{opened} images are under way and {self._max_open} is the most; come again"
            raise busy(text, max(1.0, estimate_s / 2))
        if estimate_s > deadline_s:
            raise busy(
                f"this would take about {estimate_s:.0f} s and the deadline is {deadline_s:g} s; "
                "come again, or ask for fewer steps",
                estimate_s - deadline_s, "deadline_unreachable",
            )  # fmt: skip
        turns = [Reservation(self, caller, cost) for cost in costs]
        for turn in turns:
            self._turns[turn.waiting] = turn
            self.queue.add(turn.waiting)
        self._grant()
        return turns

    def leave(self, turn: Reservation) -> None:
        """Forget an image, whatever its state."""
        self.queue.remove(turn.waiting)
        self._turns.pop(turn.waiting, None)
        self.in_hand.discard(turn)
        if not turn.granted.done():
            turn.granted.cancel()
        self._grant()

    def _grant(self) -> None:
        # With no replica, one image goes through: it is what wakes the pool up.
        places = self.replicas * self._batch or 1
        while len(self.in_hand) < places:
            waiting = self.queue.take()
            if waiting is None:
                return
            turn = self._turns.pop(waiting)
            if turn.granted.done():
                # Its owner was cancelled a moment ago, and has yet to say so.
                continue
            self.in_hand.add(turn)
            turn.granted.set_result(None)
