"""A pool of Ray actors: given chunks when idle, replaced when they die, helped when slow.

Not ray.util.ActorPool, nor Ray Data's: theirs wait without end for actors that have no room, end
with the first that dies, and leave a slow chunk with the actor that is slow.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from dreambooth_ray.config.machines import CountRange
from dreambooth_ray.errors import CapacityError, DreamBoothError

MAX_ERRORS = 3
MAX_DEATHS = 10
# A chunk that takes this many times the median time is started by an idle actor as well.
SLOW_TIMES = 2.0
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PoolWords:
    """What errors say of a pool.

    work: what its chunks are of; when_memory_runs_out, when_room_is_short: what to do then
    """

    work: str
    when_memory_runs_out: str
    when_room_is_short: str


@dataclass
class _Task:
    """What an actor does since `since_s`: loads (number None), or works on chunk `number`."""

    actor: Any
    number: int | None
    since_s: float


def find_own_error(error: RayTaskError) -> Exception:
    """What a task raised, where that is an error of ours; else Ray's own, with the task's trace."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, DreamBoothError) else error


class ActorPool(Generic[_Result]):
    """Between span.min and span.max actors, as the cluster has room for them.

    An actor class has a method `ready`, which loads what the work needs: Ray gives an error of a
    constructor back as text alone.
    """

    def __init__(
        self,
        create_actor: Callable[[], Any],
        span: CountRange,
        num_chunks: int,
        wait_s: float,
        words: PoolWords,
    ) -> None:
        """create_actor(): a new actor; num_chunks: to do; wait_s: for room for the fewest."""
        self._create_actor, self._wait_s, self._words = create_actor, wait_s, words
        self._min_actors = min(span.min, num_chunks)
        self._tasks: dict[Any, _Task] = {}
        self._idle: list[Any] = []
        self._errors: Counter[int | None] = Counter()
        self._deaths, self._durations = 0, list[float]()
        self._alive_s = time.monotonic()
        self._num_ready = 0
        for _ in range(min(span.max, num_chunks)):
            self._start_actor()

    def process_chunks(
        self, todo: list[int], start: Callable[[Any, int], Any]
    ) -> Iterator[tuple[int, _Result]]:
        """Hand out chunks, wait for a result, yield what came of finished chunks; to be repeated.

        A slow chunk is done twice, and may come twice, with the same result.
        start(actor, number): begins a chunk; returns Ray's reference to its result
        raises: DreamBoothError if one chunk or all actors keep failing, CapacityError
        """
        if self._num_ready >= self._min_actors:
            for actor, chunk_number in self._assign_chunks(todo):
                self._tasks[start(actor, chunk_number)] = _Task(
                    actor, chunk_number, time.monotonic()
                )
                self._idle.remove(actor)
        ready_refs, _ = ray.wait(list(self._tasks), num_returns=1, timeout=0.5)
        self._check_enough_actors()
        for ref in ready_refs:
            task = self._tasks.pop(ref)
            is_done, result = self._collect_result(ref, task)
            if is_done and task.number is not None:
                yield task.number, result

    def close(self) -> None:
        """End all actors."""
        for actor in [*self._idle, *(task.actor for task in self._tasks.values())]:
            ray.kill(actor)
        self._tasks.clear()
        self._idle.clear()

    def _assign_chunks(self, todo: list[int]) -> list[tuple[Any, int]]:
        """Idle actors with their next chunks; slow chunks twice when no others are left."""
        actors_per_chunk = Counter(t.number for t in self._tasks.values() if t.number is not None)
        waiting_chunks = [n for n in todo if not actors_per_chunk[n]] + self._find_slow_chunks(
            actors_per_chunk
        )
        return list(zip(self._idle, waiting_chunks, strict=False))

    def _find_slow_chunks(self, actors_per_chunk: Counter[int]) -> list[int]:
        if not self._durations:
            return []
        limit_s, now_s = SLOW_TIMES * statistics.median(self._durations), time.monotonic()
        return [
            t.number
            for t in self._tasks.values()
            if t.number is not None
            and actors_per_chunk[t.number] == 1
            and now_s - t.since_s > limit_s
        ]

    def _collect_result(self, ref: Any, task: _Task) -> tuple[bool, Any]:
        """Whether the task is done, and its result."""
        try:
            result = ray.get(ref)
        except RayActorError as error:
            self._replace_actor(error)
            return False, None
        except RayTaskError as error:
            self._count_error(task.number, error)
            if task.number is None:
                ray.kill(task.actor)
                self._start_actor()
            else:
                self._idle.append(task.actor)
            return False, None
        self._idle.append(task.actor)
        if task.number is None:
            self._num_ready += 1
        else:
            # Not where one has loaded: each may die of its first chunk.
            self._deaths = 0
            self._durations.append(time.monotonic() - task.since_s)
        return True, result

    def _start_actor(self) -> None:
        actor = self._create_actor()
        self._tasks[actor.ready.remote()] = _Task(actor, None, time.monotonic())

    def _replace_actor(self, error: RayActorError) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise DreamBoothError(
                f"{self._words.work} actors died {self._deaths} times in a row ({error}); if "
                f"memory ran out, {self._words.when_memory_runs_out}"
            ) from error
        self._start_actor()

    def _count_error(self, number: int | None, error: RayTaskError) -> None:
        if isinstance(error.cause, DreamBoothError):
            raise error.cause from error
        self._errors[number] += 1
        if self._errors[number] >= MAX_ERRORS:
            failed_work = "loading" if number is None else f"chunk {number}"
            raise DreamBoothError(
                f"{self._words.work} {failed_work} failed {MAX_ERRORS} times: {error.cause!r}"
            ) from error

    def _check_enough_actors(self) -> None:
        """Give up if too few actors start, or none comes back: the cluster has no room."""
        is_working = any(task.number is not None for task in self._tasks.values())
        if self._num_ready >= self._min_actors and (self._idle or is_working):
            self._alive_s = time.monotonic()
        if time.monotonic() - self._alive_s < self._wait_s:
            return
        raise CapacityError(
            f"{self._num_ready} of at least {self._min_actors} {self._words.work} actors started "
            f"within {self._wait_s:g} s; {self._words.when_room_is_short}. The "
            f"cluster has {ray.cluster_resources()}"
        )
