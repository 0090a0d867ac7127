"""Whose work is next: owners take turns, each owner's own in order. No IO, no clock."""

from collections import deque
from dataclasses import dataclass


@dataclass(eq=False)
class QueuedWork:
    """What waits for a place. cost: in steps."""

    owner: str
    cost: int


class FairQueue:
    """Deficit round robin over owners: equal shares of steps, whatever each one asks for.

    Shreedhar and Varghese 1996, "Efficient fair queuing using deficit round robin".
    """

    def __init__(self, quantum: int = 25) -> None:
        """quantum: steps that an owner is given each turn."""
        self._quantum = quantum
        self._queues: dict[str, deque[QueuedWork]] = {}
        self._owners: deque[str] = deque()
        self._credit: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(q) for q in self._queues.values())

    @property
    def waiting_steps(self) -> int:
        """Steps of all that wait."""
        return sum(w.cost for q in self._queues.values() for w in q)

    def add(self, work: QueuedWork) -> None:
        """At the end of its owner's queue."""
        if work.owner not in self._queues:
            self._queues[work.owner] = deque()
            self._owners.append(work.owner)
            self._credit[work.owner] = 0
        self._queues[work.owner].append(work)

    def take(self) -> QueuedWork | None:
        """The next one, or None if nobody waits."""
        while self._owners:
            owner = self._owners[0]
            first_work = self._queues[owner][0]
            if self._credit[owner] >= first_work.cost:
                self._credit[owner] -= first_work.cost
                self._queues[owner].popleft()
                self._drop_if_empty(owner)
                return first_work
            self._credit[owner] += self._quantum
            self._owners.rotate(-1)
        return None

    def remove(self, work: QueuedWork) -> None:
        """Forget one that gave up; nothing if it is not here."""
        owner_queue = self._queues.get(work.owner)
        if owner_queue is not None and work in owner_queue:
            owner_queue.remove(work)
            self._drop_if_empty(work.owner)

    def count_steps_ahead(self, owner: str, cost: int) -> int:
        """Steps that will be begun before new work of this owner is.

        Its own queue, and of every other owner as much as its turn gives, at most.
        """
        own_queue_steps = sum(w.cost for w in self._queues.get(owner, ())) + cost
        other_owner_steps = (
            min(sum(w.cost for w in q), own_queue_steps + self._quantum)
            for other_owner, q in self._queues.items()
            if other_owner != owner
        )
        return own_queue_steps - cost + sum(other_owner_steps)

    def find_work_position(self, work: QueuedWork) -> int | None:
        """Work of all owners that go before it, at most; None if it is not here."""
        owner_queue = self._queues.get(work.owner)
        if owner_queue is None or work not in owner_queue:
            return None
        index = owner_queue.index(work)
        return index + sum(
            min(len(q), index + 1)
            for other_owner, q in self._queues.items()
            if other_owner != work.owner
        )

    def _drop_if_empty(self, owner: str) -> None:
        if not self._queues[owner]:
            del self._queues[owner], self._credit[owner]
            self._owners.remove(owner)
