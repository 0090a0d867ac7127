"""Whose image is next: callers take turns, each caller's own in order. No IO, no clock."""

from collections import deque
from dataclasses import dataclass


@dataclass(eq=False)
class QueuedImage:
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
        self._queues: dict[str, deque[QueuedImage]] = {}
        self._callers: deque[str] = deque()
        self._credit: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(q) for q in self._queues.values())

    @property
    def steps(self) -> int:
        """Steps of all that wait."""
        return sum(w.cost for q in self._queues.values() for w in q)

    def add(self, queued_image: QueuedImage) -> None:
        """At the end of its caller's queue."""
        if queued_image.caller not in self._queues:
            self._queues[queued_image.caller] = deque()
            self._callers.append(queued_image.caller)
            self._credit[queued_image.caller] = 0
        self._queues[queued_image.caller].append(queued_image)

    def take(self) -> QueuedImage | None:
        """The next one, or None if nobody waits."""
        while self._callers:
            caller = self._callers[0]
            first = self._queues[caller][0]
            if self._credit[caller] >= first.cost:
                self._credit[caller] -= first.cost
                self._queues[caller].popleft()
                self._drop_if_empty(caller)
                return first
            self._credit[caller] += self._quantum
            self._callers.rotate(-1)
        return None

    def remove(self, queued_image: QueuedImage) -> None:
        """Forget one that gave up; nothing if it is not here."""
        queue = self._queues.get(queued_image.caller)
        if queue is not None and queued_image in queue:
            queue.remove(queued_image)
            self._drop_if_empty(queued_image.caller)

    def count_steps_ahead(self, caller: str, cost: int) -> int:
        """Steps that will be begun before a new image of this caller is.

        Its own queue, and of every other caller as much as its turn gives, at most.
        """
        own_steps = sum(w.cost for w in self._queues.get(caller, ())) + cost
        other_steps = (
            min(sum(w.cost for w in q), own_steps + self._quantum)
            for name, q in self._queues.items()
            if name != caller
        )
        return own_steps - cost + sum(other_steps)

    def position(self, queued_image: QueuedImage) -> int | None:
        """Images of all callers that go before it, at most; None if it is not here."""
        queue = self._queues.get(queued_image.caller)
        if queue is None or queued_image not in queue:
            return None
        index = queue.index(queued_image)
        return index + sum(
            min(len(q), index + 1)
            for name, q in self._queues.items()
            if name != queued_image.caller
        )

    def _drop_if_empty(self, caller: str) -> None:
        if not self._queues[caller]:
            del self._queues[caller], self._credit[caller]
            self._callers.remove(caller)
