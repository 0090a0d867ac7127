"""Whose image is next: callers take turns, each caller's own in order. No IO, no clock."""

from collections import deque
from dataclasses import dataclass


@dataclass(eq=False)
class Waiting:
    """An image that waits for a place. cost: denoising steps."""

    caller: str
    cost: int


class FairQueue:
    """Deficit round robin over callers: equal shares of steps, whatever each one asks for.

    Shreedhar and Varghese 1996, "Efficient fair queuing using deficit round robin".
    """

    def __init__(self, quantum: int = 25) -> None:
        """quantum: steps a caller is given each turn."""
        self._quantum = quantum
        self._queues: dict[str, deque[Waiting]] = {}
        self._turns: deque[str] = deque()
        self._credit: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(q) for q in self._queues.values())

    @property
    def steps(self) -> int:
        """Steps of all that wait."""
        return sum(w.cost for q in self._queues.values() for w in q)

    def add(self, waiting: Waiting) -> None:
        """At the end of its caller's queue."""
        if waiting.caller not in self._queues:
            self._queues[waiting.caller] = deque()
            self._turns.append(waiting.caller)
            self._credit[waiting.caller] = 0
        self._queues[waiting.caller].append(waiting)

    def take(self) -> Waiting | None:
        """The next one, or None if nobody waits."""
        while self._turns:
            caller = self._turns[0]
            first = self._queues[caller][0]
            if self._credit[caller] >= first.cost:
                self._credit[caller] -= first.cost
                self._queues[caller].popleft()
                self._drop_if_empty(caller)
                return first
            self._credit[caller] += self._quantum
            self._turns.rotate(-1)
        return None

    def remove(self, waiting: Waiting) -> None:
        """Forget one that gave up; nothing if it is not here."""
        queue = self._queues.get(waiting.caller)
        if queue is not None and waiting in queue:
            queue.remove(waiting)
            self._drop_if_empty(waiting.caller)

    def ahead(self, caller: str, cost: int) -> int:
        """Steps that will be begun before a new image of this caller is.

        Its own queue, and of every other caller as much as its turn gives, at most.
        """
        own = sum(w.cost for w in self._queues.get(caller, ())) + cost
        others = (
            min(sum(w.cost for w in q), own + self._quantum)
            for name, q in self._queues.items()
            if name != caller
        )
        return own - cost + sum(others)

    def position(self, waiting: Waiting) -> int | None:
        """Images of all callers that go before it, at most; None if it is not here."""
        queue = self._queues.get(waiting.caller)
        if queue is None or waiting not in queue:
            return None
        place = queue.index(waiting)
        return place + sum(
            min(len(q), place + 1) for name, q in self._queues.items() if name != waiting.caller
        )

    def _drop_if_empty(self, caller: str) -> None:
        if not self._queues[caller]:
            del self._queues[caller], self._credit[caller]
            self._turns.remove(caller)
