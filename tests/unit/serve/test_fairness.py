from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve.fairness import FairQueue, Waiting

_ASKED = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 150)), max_size=40)


def _filled(asked: list[tuple[str, int]]) -> tuple[FairQueue, list[Waiting]]:
    queue = FairQueue()
    all_ = [Waiting(caller, cost) for caller, cost in asked]
    for waiting in all_:
        queue.add(waiting)
    return queue, all_


@given(_ASKED)
def test_everyone_is_taken_once_and_each_callers_own_in_order(asked: list[tuple[str, int]]) -> None:
    queue, all_ = _filled(asked)
    taken = []
    while (waiting := queue.take()) is not None:
        taken.append(waiting)
    assert len(taken) == len(all_)
    for caller in "abcd":
        assert [w for w in taken if w.caller == caller] == [w for w in all_ if w.caller == caller]
    assert (len(queue), queue.steps) == (0, 0)


@given(st.integers(1, 200), st.integers(1, 6))
def test_one_image_is_not_held_up_by_anothers_thousand(queued: int, others: int) -> None:
    queue = FairQueue()
    for caller in range(others):
        for _ in range(queued):
            queue.add(Waiting(str(caller), 25))
    mine = Waiting("mine", 25)
    queue.add(mine)
    before = Counter[str]()
    while (waiting := queue.take()) is not mine:
        assert waiting is not None
        before[waiting.caller] += 1
    assert max(before.values(), default=0) <= 2


@given(_ASKED, st.data())
def test_one_that_gives_up_is_gone(asked: list[tuple[str, int]], data: st.DataObject) -> None:
    queue, all_ = _filled(asked)
    gone = data.draw(st.sets(st.sampled_from(all_) if all_ else st.nothing()))
    for waiting in gone:
        queue.remove(waiting)
        queue.remove(waiting)
    taken = set()
    while (waiting := queue.take()) is not None:
        taken.add(waiting)
    assert taken == set(all_) - gone


def test_steps_ahead_and_positions() -> None:
    queue, all_ = _filled([("a", 25)] * 10 + [("b", 50)])
    assert queue.position(all_[0]) == 1
    assert queue.position(all_[9]) == 10
    assert queue.position(all_[10]) == 1
    # b's turn comes after as much of a's as b has itself, and one turn more.
    assert queue.ahead("c", 25) == 50 + 50
    assert queue.ahead("a", 25) == 250 + 50
