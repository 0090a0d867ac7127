from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.evaluation.pareto_front import Scored, best, front, stalls_at

POINTS = [
    Scored(10, 0.3, 0.01),
    Scored(20, 0.6, 0.05),
    Scored(30, 0.8, 0.09),
    Scored(40, 0.79, 0.15),
    Scored(50, 0.9, 0.30),
]
scored = st.lists(
    st.builds(Scored, st.integers(1, 99), st.floats(0, 1, width=16), st.floats(0, 1, width=16)),
    max_size=8,
    unique_by=lambda s: s.step,
)


def test_the_front_leaves_out_what_is_beaten_in_both() -> None:
    assert [s.step for s in front(POINTS)] == [10, 20, 30, 50]
    assert [s.step for s in front([Scored(2, 0.5, 0.1), Scored(1, 0.5, 0.1)])] == [1]


def test_the_best_is_the_most_faithful_within_the_bound() -> None:
    found = best(POINTS, max_drift=0.1)
    assert found is not None
    assert found.step == 30
    loose = best(POINTS, max_drift=1.0)
    assert loose is not None
    assert loose.step == 50
    assert best([], 0.1) is None


def test_where_all_have_drifted_too_far_the_least_drifted_is_kept() -> None:
    found = best(POINTS[3:], max_drift=0.1)
    assert found is not None
    assert found.step == 40


def test_a_front_that_gains_nothing_stalls() -> None:
    flat = [Scored(10, 0.5, 0.1), Scored(20, 0.505, 0.2), Scored(30, 0.504, 0.3)]
    assert stalls_at(flat, patience=2, min_gain=0.01) == 30
    assert stalls_at(flat[:2], patience=2, min_gain=0.01) is None
    assert stalls_at(flat, patience=0, min_gain=0.01) is None
    assert stalls_at(POINTS, patience=2, min_gain=0.01) is None
    assert stalls_at([*flat, Scored(40, 0.9, 0.1)], patience=2, min_gain=0.01) == 30


@settings(max_examples=60, deadline=None)
@given(scored, st.floats(0, 1))
def test_the_best_is_never_beaten_and_order_does_not_matter(
    points: list[Scored], bound: float
) -> None:
    found = best(points, bound)
    assert found == best(points[::-1], bound)
    if found is not None:
        rivals = [p for p in points if p.fidelity > found.fidelity and p.drift < found.drift]
        assert not rivals
    assert set(front(points)) <= set(points)
    assert bool(front(points)) == bool(points)
