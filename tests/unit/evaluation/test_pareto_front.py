from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.evaluation.pareto_front import (
    ScoredCheckpoint,
    find_early_stop_step,
    find_fidelity_drift_front,
    select_best_within_drift,
)

POINTS = [
    ScoredCheckpoint(10, 0.3, 0.01),
    ScoredCheckpoint(20, 0.6, 0.05),
    ScoredCheckpoint(30, 0.8, 0.09),
    ScoredCheckpoint(40, 0.79, 0.15),
    ScoredCheckpoint(50, 0.9, 0.30),
]
scored = st.lists(
    st.builds(
        ScoredCheckpoint, st.integers(1, 99), st.floats(0, 1, width=16), st.floats(0, 1, width=16)
    ),
    max_size=8,
    unique_by=lambda s: s.step,
)


def test_the_front_leaves_out_what_is_beaten_in_both() -> None:
    assert [s.step for s in find_fidelity_drift_front(POINTS)] == [10, 20, 30, 50]
    assert [
        s.step
        for s in find_fidelity_drift_front(
            [ScoredCheckpoint(2, 0.5, 0.1), ScoredCheckpoint(1, 0.5, 0.1)]
        )
    ] == [1]


def test_the_best_is_the_most_faithful_within_the_bound() -> None:
    best = select_best_within_drift(POINTS, max_drift=0.1)
    assert best is not None
    assert best.step == 30
    loose = select_best_within_drift(POINTS, max_drift=1.0)
    assert loose is not None
    assert loose.step == 50
    assert select_best_within_drift([], 0.1) is None


def test_where_all_have_drifted_too_far_the_least_drifted_is_kept() -> None:
    best = select_best_within_drift(POINTS[3:], max_drift=0.1)
    assert best is not None
    assert best.step == 40


def test_a_front_that_gains_nothing_stalls() -> None:
    flat = [
        ScoredCheckpoint(10, 0.5, 0.1),
        ScoredCheckpoint(20, 0.505, 0.2),
        ScoredCheckpoint(30, 0.504, 0.3),
    ]
    assert find_early_stop_step(flat, patience=2, min_gain=0.01) == 30
    assert find_early_stop_step(flat[:2], patience=2, min_gain=0.01) is None
    assert find_early_stop_step(flat, patience=0, min_gain=0.01) is None
    assert find_early_stop_step(POINTS, patience=2, min_gain=0.01) is None
    assert (
        find_early_stop_step([*flat, ScoredCheckpoint(40, 0.9, 0.1)], patience=2, min_gain=0.01)
        == 30
    )


@settings(max_examples=60, deadline=None)
@given(scored, st.floats(0, 1))
def test_the_best_is_never_beaten_and_order_does_not_matter(
    points: list[ScoredCheckpoint], bound: float
) -> None:
    best = select_best_within_drift(points, bound)
    assert best == select_best_within_drift(points[::-1], bound)
    if best is not None:
        rivals = [p for p in points if p.fidelity > best.fidelity and p.drift < best.drift]
        assert not rivals
    assert set(find_fidelity_drift_front(points)) <= set(points)
    assert bool(find_fidelity_drift_front(points)) == bool(points)
