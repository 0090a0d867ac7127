"""Actors at work: fed as they get free, replaced when they die, helped out when slow."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dreambooth_ray.config.machines import Span
from dreambooth_ray.data.prior_set import Record
from dreambooth_ray.errors import CapacityError, DreamBoothError

MOST_ERRORS = 3
MOST_DEATHS = 10
# A chunk that takes so many times the usual is begun by a free actor as well.
SLOW_TIMES = 2.0


@dataclass
class _Task:
    """What an actor does: loading (number None), or chunk `number` since `since_s`."""

    actor: Any
    number: int | None
    since_s: float


class ActorPool:
    """Between span.min and span.max actors, as the cluster has room for them."""

    def __init__(self, make: Callable[[], Any], span: Span, most: int, wait_s: float) -> None:
        """make(): a new actor; most: chunks there are to draw; wait_s: for room for the least."""
        self._make, self._least, self._wait_s = make, min(span.min, most), wait_s
        self._tasks: dict[Any, _Task] = {}
        self._free: list[Any] = []
        self._errors: Counter[int] = Counter()
        self._deaths, self._durations = 0, list[float]()
        self._alive_s = time.monotonic()
        self._joined = 0
        for _ in range(min(span.max, most)):
            self._hire()

    def work(
        self, todo: list[int], images: Callable[[int], list[bytes]] | None
    ) -> Iterator[tuple[int, list[Record]]]:
        """Hand out chunks, wait for something to happen, yield what was finished.

        raises: DreamBoothError if one chunk or all actors keep failing, CapacityError
        """
        if self._joined >= self._least:
            for actor, number in self._assignments(todo):
                given = images(number) if images else None
                ref = actor.paint.remote(number, given)
                self._tasks[ref] = _Task(actor, number, time.monotonic())
                self._free.remove(actor)
        ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=0.5)
        self._check_alive()
        for ref in ready:
            task = self._tasks.pop(ref)
            drawn = self._collect(ref, task)
            if drawn is not None and task.number is not None:
                yield task.number, drawn

    def dismiss(self) -> None:
        """End all actors."""
        for actor in [*self._free, *(task.actor for task in self._tasks.values())]:
            ray.kill(actor)
        self._tasks.clear()
        self._free.clear()

    def _assignments(self, todo: list[int]) -> list[tuple[Any, int]]:
        """Which free actor draws which chunk next; slow ones twice when nothing else is left."""
        drawers = Counter(t.number for t in self._tasks.values() if t.number is not None)
        waiting = [n for n in todo if not drawers[n]] + self._slow(drawers)
        return list(zip(self._free, waiting, strict=False))

    def _slow(self, drawers: Counter[int]) -> list[int]:
        if not self._durations:
            return []
        limit_s, now = SLOW_TIMES * statistics.median(self._durations), time.monotonic()
        return [
            t.number
            for t in self._tasks.values()
            if t.number is not None and drawers[t.number] == 1 and now - t.since_s > limit_s
        ]

    def _collect(self, ref: Any, task: _Task) -> list[Record] | None:
        try:
            result = ray.get(ref)
        except RayActorError as error:
            self._replace(error)
            return None
        except RayTaskError as error:
            self._free.append(task.actor)
            self._note_error(task.number, error)
            return None
        self._free.append(task.actor)
        self._deaths = 0
        if task.number is None:
            self._joined += 1
            return None
        self._durations.append(time.monotonic() - task.since_s)
        drawn: list[Record] = result
        return drawn

    def _hire(self) -> None:
        actor = self._make()
        self._tasks[actor.ready.remote()] = _Task(actor, None, time.monotonic())

    def _replace(self, error: RayActorError) -> None:
        self._deaths += 1
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, RayTaskError) and isinstance(cause.cause, DreamBoothError):
            raise cause.cause from error
        if self._deaths > MOST_DEATHS:
            raise DreamBoothError(
                f"class-image actors died {self._deaths} times in a row ({error}); if memory ran "
                "out, lower prior.actors or prior.batch_size"
            ) from error
        self._hire()

    def _note_error(self, number: int | None, error: RayTaskError) -> None:
        if isinstance(error.cause, DreamBoothError):
            raise error.cause from error
        self._errors[number or 0] += 1
        if self._errors[number or 0] >= MOST_ERRORS:
            raise DreamBoothError(
                f"class-image chunk {number} failed {MOST_ERRORS} times: {error.cause!r}"
            ) from error

    def _check_alive(self) -> None:
        """Give up if too few actors start, or none comes back: the cluster has no room."""
        drawing = any(task.number is not None for task in self._tasks.values())
        if self._joined >= self._least and (self._free or drawing):
            self._alive_s = time.monotonic()
        if time.monotonic() - self._alive_s < self._wait_s:
            return
        raise CapacityError(
            f"{self._joined} of at least {self._least} class-image actors started within "
            f"cluster.wait_s={self._wait_s:g} s; lower prior.actors, or ask for less by "
            f"prior.num_cpus, prior.num_gpus or prior.resources. The cluster has "
            f"{ray.cluster_resources()}"
        )
