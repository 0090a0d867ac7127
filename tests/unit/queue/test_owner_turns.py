from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.queue.owner_turns import OwnerTurns


@dataclass(frozen=True)
class Work:
    number: int
    owner: str
    priority: int = 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=20))
def test_no_owner_who_waits_is_two_pieces_behind_another(pieces: list[tuple[str, int]]) -> None:
    waiting = [Work(number, *piece) for number, piece in enumerate(pieces)]
    turns, given_work = OwnerTurns(), Counter[str]()
    while (work := turns.take(waiting)) is not None:
        given_work[work.owner] += 1
        still_waiting = {other.owner for other in waiting if other != work}
        assert all(given_work[work.owner] <= given_work[o] + 1 for o in still_waiting)
        better = [w for w in waiting if w.owner == work.owner and w.priority > work.priority]
        assert not better
        waiting.remove(work)
    assert not waiting
