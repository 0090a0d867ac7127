"""The queue of requests: those that wait, and those that share steps."""

from collections import deque
from collections.abc import Callable

from dreambooth_ray.sampling.request_handle import RequestHandle

# Requests that can share a forward: latent height and width.
Group = tuple[int, int]


class RequestQueue:
    """First come, first served within a group; groups take turns of equal time."""

    def __init__(self) -> None:
        # Seconds that each group has had, from those of the least one when it came.
        self._seconds: dict[Group, float] = {}
        self._waiting: dict[Group, deque[RequestHandle]] = {}
        self._active: dict[Group, list[RequestHandle]] = {}
        self._turns: deque[Group] = deque()

    def add(self, group: Group, handle: RequestHandle) -> None:
        """Add a request to those that wait."""
        self._waiting.setdefault(group, deque()).append(handle)
        if group not in self._turns:
            self._turns.append(group)
            self._seconds[group] = min(self._seconds.values(), default=0.0)

    def select_next_batch(self, batch_limit: Callable[[Group], int]) -> list[RequestHandle]:
        """The requests of the next step, from the group that has had the least time, so that small
        images do not wait for each step of large ones; empty if none is left.

        batch_limit(group): how many of a group may share a step
        """
        for _ in range(len(self._turns)):
            latent_shape = min(self._turns, key=self._seconds.__getitem__)
            self._turns.remove(latent_shape)
            self._turns.append(latent_shape)
            active_handles = [t for t in self._active.get(latent_shape, []) if not t.future.done()]
            waiting_handles = self._waiting.get(latent_shape, deque())
            while waiting_handles and len(active_handles) < batch_limit(latent_shape):
                handle = waiting_handles.popleft()
                if not handle.future.done():
                    active_handles.append(handle)
            if active_handles:
                self._active[latent_shape] = active_handles
                return list(active_handles)
            self._turns.remove(latent_shape)
            self._seconds.pop(latent_shape)
            self._active.pop(latent_shape, None)
            self._waiting.pop(latent_shape, None)
        return []

    def add_group_seconds(self, group: Group, seconds: float) -> None:
        """A step of a group has taken that long."""
        if group in self._seconds:
            self._seconds[group] += seconds

    def handles(self) -> list[RequestHandle]:
        """All requests that are neither done nor cancelled."""
        handle_lists = [*self._active.values(), *self._waiting.values()]
        return [t for handle_list in handle_lists for t in handle_list if not t.future.done()]

    @property
    def num_active(self) -> int:
        """Requests that share steps now."""
        return sum(not t.future.done() for group in self._active.values() for t in group)

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return sum(not t.future.done() for group in self._waiting.values() for t in group)
