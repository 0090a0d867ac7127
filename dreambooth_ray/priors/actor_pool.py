"""A pool of actors: given work when idle, replaced when they die, helped when slow."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dreambooth_ray.config.machines import Span
from dreambooth_ray.data.prior_set import PriorRecord
from dreambooth_ray.errors import CapacityError, DreamBoothError

MAX_ERRORS = 3
MAX_DEATHS = 10
# A chunk that takes this many times the median time is started by an idle actor as well.
SLOW_TIMES = 2.0


@dataclass
class _Task:
    """What an actor does since `since_s`: loads (number None), or generates chunk `number`."""

    actor: Any
    number: int | None
    since_s: float


class ActorPool:
    """Between span.min and span.max actors, as the cluster has room for them."""

    def __init__(
        self, create_actor: Callable[[], Any], span: Span, num_chunks: int, wait_s: float
    ) -> None:
        """create_actor(): a new actor; num_chunks: to generate; wait_s: for room for the fewest."""
        self._create_actor, self._wait_s = create_actor, wait_s
        self._min_actors = min(span.min, num_chunks)
        self._tasks: dict[Any, _Task] = {}
        self._idle: list[Any] = []
        self._errors: Counter[int] = Counter()
        self._deaths, self._durations = 0, list[float]()
        self._alive_s = time.monotonic()
        self._num_ready = 0
        for _ in range(min(span.max, num_chunks)):
            self._start_actor()

    def process_chunks(
        self, todo: list[int], images: Callable[[int], list[bytes]] | None
    ) -> Iterator[tuple[int, list[PriorRecord]]]:
        """Hand out chunks, wait for a result, yield the records of finished chunks.

        raises: DreamBoothError if one chunk or all actors keep failing, CapacityError
        """
        if self._num_ready >= self._min_actors:
            for actor, number in self._assign_chunks(todo):
                image_files = images(number) if images else None
                ref = actor.generate.remote(number, image_files)
                self._tasks[ref] = _Task(actor, number, time.monotonic())
                self._idle.remove(actor)
        ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=0.5)
        self._check_alive()
        for ref in ready:
            task = self._tasks.pop(ref)
            records = self._collect_records(ref, task)
            if records is not None and task.number is not None:
                yield task.number, records

    def close(self) -> None:
        """End all actors."""
        for actor in [*self._idle, *(task.actor for task in self._tasks.values())]:
            ray.kill(actor)
        self._tasks.clear()
        self._idle.clear()

    def _assign_chunks(self, todo: list[int]) -> list[tuple[Any, int]]:
        """Idle actors with their next chunks; slow chunks twice when no others are left."""
        actor_counts = Counter(t.number for t in self._tasks.values() if t.number is not None)
        waiting = [n for n in todo if not actor_counts[n]] + self._find_slow_chunks(actor_counts)
        return list(zip(self._idle, waiting, strict=False))

    def _find_slow_chunks(self, actor_counts: Counter[int]) -> list[int]:
        if not self._durations:
            return []
        limit_s, now_s = SLOW_TIMES * statistics.median(self._durations), time.monotonic()
        return [
            t.number
            for t in self._tasks.values()
            if t.number is not None and actor_counts[t.number] == 1 and now_s - t.since_s > limit_s
        ]

    def _collect_records(self, ref: Any, task: _Task) -> list[PriorRecord] | None:
        try:
            result = ray.get(ref)
        except RayActorError as error:
            self._replace_actor(error)
            return None
        except RayTaskError as error:
            self._idle.append(task.actor)
            self._count_error(task.number, error)
            return None
        self._idle.append(task.actor)
        self._deaths = 0
        if task.number is None:
            self._num_ready += 1
            return None
        self._durations.append(time.monotonic() - task.since_s)
        records: list[PriorRecord] = result
        return records

    def _start_actor(self) -> None:
        actor = self._create_actor()
        self._tasks[actor.ready.remote()] = _Task(actor, None, time.monotonic())

    def _replace_actor(self, error: RayActorError) -> None:
        self._deaths += 1
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, RayTaskError) and isinstance(cause.cause, DreamBoothError):
            raise cause.cause from error
        if self._deaths > MAX_DEATHS:
            raise DreamBoothError(
                f"class-image actors died {self._deaths} times in a row ({error}); if memory ran "
                "out, lower prior.actors or prior.batch_size"
            ) from error
        self._start_actor()

    def _count_error(self, number: int | None, error: RayTaskError) -> None:
        if isinstance(error.cause, DreamBoothError):
            raise error.cause from error
        self._errors[number or 0] += 1
        if self._errors[number or 0] >= MAX_ERRORS:
            raise DreamBoothError(
                f"class-image chunk {number} failed {MAX_ERRORS} times: {error.cause!r}"
            ) from error

    def _check_alive(self) -> None:
        """Give up if too few actors start, or none comes back: the cluster has no room."""
        is_generating = any(task.number is not None for task in self._tasks.values())
        if self._num_ready >= self._min_actors and (self._idle or is_generating):
            self._alive_s = time.monotonic()
        if time.monotonic() - self._alive_s < self._wait_s:
            return
        raise CapacityError(
            f"{self._num_ready} of at least {self._min_actors} class-image actors started within "
            f"cluster.wait_s={self._wait_s:g} s; lower prior.actors, or ask for less by "
            f"prior.num_cpus, prior.num_gpus or prior.resources. The cluster has "
            f"{ray.cluster_resources()}"
        )
