"""Who goes next: requests that wait, and those that share steps."""

from collections import deque
from collections.abc import Callable

from dreambooth_ray.sampling.request_handle import RequestHandle

# Requests that can share a forward: latent height and width.
Group = tuple[int, int]


class StepQueue:
    """First come, first served within a group; groups take turns."""

    def __init__(self) -> None:
        self._waiting: dict[Group, deque[RequestHandle]] = {}
        self._active: dict[Group, list[RequestHandle]] = {}
        self._turns: deque[Group] = deque()

    def add(self, group: Group, ticket: RequestHandle) -> None:
        """Let a request wait."""
        self._waiting.setdefault(group, deque()).append(ticket)
        if group not in self._turns:
            self._turns.append(group)

    def next(self, places: Callable[[Group], int]) -> list[RequestHandle]:
        """The requests of the next step, from the group whose turn it is; empty if none is left.

        places(group): how many of a group may share a step
        """
        for _ in range(len(self._turns)):
            group = self._turns[0]
            self._turns.rotate(-1)
            active = [t for t in self._active.get(group, []) if not t.future.done()]
            waiting = self._waiting.get(group, deque())
            while waiting and len(active) < places(group):
                ticket = waiting.popleft()
                if not ticket.future.done():
                    active.append(ticket)
            if active:
                self._active[group] = active
                return list(active)
            self._turns.remove(group)
            self._active.pop(group, None)
            self._waiting.pop(group, None)
        return []

    def tickets(self) -> list[RequestHandle]:
        """All that are neither done nor cancelled."""
        groups = [*self._active.values(), *self._waiting.values()]
        return [t for group in groups for t in group if not t.future.done()]

    @property
    def num_active(self) -> int:
        """Requests that have a place."""
        return sum(not t.future.done() for group in self._active.values() for t in group)

    @property
    def num_waiting(self) -> int:
        """Requests that have none yet."""
        return sum(not t.future.done() for group in self._waiting.values() for t in group)
