"""The pool over a Ray of this process: every call is answered when it is waited for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from dreambooth_ray import actor_pool
from dreambooth_ray.actor_pool import MAX_DEATHS, MAX_ERRORS, ActorPool, PoolWords
from dreambooth_ray.config.machines import CountRange
from dreambooth_ray.errors import CapacityError, DataError, DreamBoothError

WORDS = PoolWords("test", "take less", "take fewer")


class Call:
    """A reference to what a function will return; never where `takes_s` is infinite."""

    def __init__(self, work: Callable[[], Any], takes_s: float = 1.0) -> None:
        self.work, self.takes_s = work, takes_s


@dataclass
class LocalRay:
    """ray.wait, get and kill; a clock that a wait moves on."""

    now_s: float = 0.0
    killed: list[Any] = field(default_factory=list)

    def wait(self, calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], None]:
        done = [call for call in calls if call.takes_s <= 1]
        for call in calls:
            call.takes_s -= 1
        self.now_s += 1.0 if done else timeout
        return done[:num_returns], None

    def get(self, call: Call) -> Any:
        return call.work()

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


class Actor:
    def __init__(self, is_started: bool = True) -> None:
        takes_s = 1.0 if is_started else float("inf")
        self.ready = SimpleNamespace(remote=lambda: Call(lambda: True, takes_s))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> LocalRay:
    local = LocalRay()
    monkeypatch.setattr(actor_pool, "ray", local)
    monkeypatch.setattr(actor_pool, "time", SimpleNamespace(monotonic=lambda: local.now_s))
    return local


def run(pool: ActorPool[int], todo: list[int], start: Callable[[Any, int], Call]) -> Iterator[int]:
    while todo:
        for number, result in pool.process_chunks(todo, start):
            if number in todo:
                todo.remove(number)
                yield result


def make_pool(create_actor: Callable[[], Actor] = Actor, chunks: int = 6) -> ActorPool[int]:
    return ActorPool(create_actor, CountRange(min=1, max=2), chunks, 60.0, WORDS)


def test_every_chunk_is_done_and_all_actors_end(ray: LocalRay) -> None:
    pool = make_pool()
    results = run(pool, list(range(6)), lambda _, n: Call(lambda: n * 10))
    assert sorted(results) == [0, 10, 20, 30, 40, 50]
    pool.close()
    assert len(ray.killed) == 2


def fail(error: Exception) -> Any:
    raise error


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("generate", "the traceback", cause)


def test_a_dead_actors_chunk_is_done_by_another(ray: LocalRay) -> None:
    actors: list[Actor] = []

    def create_actor() -> Actor:
        actors.append(Actor())
        return actors[-1]

    def start(actor: Actor, number: int) -> Call:
        is_first = actor is actors[0]
        return Call(lambda: fail(ActorDiedError()) if is_first else number)

    assert sorted(run(make_pool(create_actor), [0, 1, 2], start)) == [0, 1, 2]
    assert len(actors) == 3


def test_actors_that_keep_dying_end_it(ray: LocalRay) -> None:
    words = rf"test actors died {MAX_DEATHS + 1} times .*take less"
    with pytest.raises(DreamBoothError, match=words):
        list(run(make_pool(), [0], lambda *_: Call(lambda: fail(ActorDiedError()))))


def test_a_chunk_that_keeps_failing_ends_it(ray: LocalRay) -> None:
    error = task_error(ValueError("odd"))
    with pytest.raises(DreamBoothError, match=rf"test chunk 0 failed {MAX_ERRORS} times.*odd"):
        list(run(make_pool(), [0], lambda *_: Call(lambda: fail(error))))


@pytest.mark.parametrize("is_loading", [True, False])
def test_what_a_person_has_to_mend_is_said_at_once(ray: LocalRay, is_loading: bool) -> None:
    failure = Call(lambda: fail(task_error(DataError("no photographs"))))

    def create_actor() -> Actor:
        actor = Actor()
        if is_loading:
            actor.ready = SimpleNamespace(remote=lambda: failure)
        return actor

    with pytest.raises(DataError, match="no photographs"):
        list(run(make_pool(create_actor), [0], lambda *_: failure))


def test_an_actor_that_could_not_load_gets_no_chunk(ray: LocalRay) -> None:
    actors: list[Actor] = []

    def create_actor() -> Actor:
        actors.append(Actor())
        if len(actors) == 1:
            error = task_error(OSError("no model"))
            actors[0].ready = SimpleNamespace(remote=lambda: Call(lambda: fail(error)))
        return actors[-1]

    def start(actor: Actor, number: int) -> Call:
        assert actor is not actors[0]
        return Call(lambda: number)

    assert sorted(run(make_pool(create_actor), [0, 1, 2], start)) == [0, 1, 2]
    assert ray.killed == actors[:1]


def test_too_little_room_is_not_waited_for_without_end(ray: LocalRay) -> None:
    pool = make_pool(lambda: Actor(is_started=False))
    with pytest.raises(CapacityError, match=r"0 of at least 1 test actors .* 60 s; take fewer"):
        list(run(pool, [0], lambda _, n: Call(lambda: n)))
    assert ray.now_s == pytest.approx(60, abs=1)


def test_a_slow_chunk_is_done_twice_and_the_first_counts(ray: LocalRay) -> None:
    starts: list[int] = []

    def start(_: Any, number: int) -> Call:
        starts.append(number)
        is_stuck = number == 0 and starts.count(0) == 1
        return Call(lambda: number, float("inf") if is_stuck else 1.0)

    assert sorted(run(make_pool(), list(range(6)), start)) == list(range(6))
    assert starts.count(0) == 2
    assert all(starts.count(number) == 1 for number in range(1, 6))
