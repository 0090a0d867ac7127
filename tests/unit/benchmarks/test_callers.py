from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.callers import compute_quantile, make_request_body, sample_arrivals


def test_arrivals_are_a_poisson_process() -> None:
    times_s = sample_arrivals(50.0, 400.0)
    assert times_s == sorted(times_s) == sample_arrivals(50.0, 400.0)
    assert times_s != sample_arrivals(50.0, 400.0, seed=8)
    gaps = [b - a for a, b in pairwise(times_s)]
    mean = fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.02)
    # Of the exponential distribution alone: the deviation is the mean.
    assert fmean((gap - mean) ** 2 for gap in gaps) ** 0.5 == pytest.approx(mean, rel=0.05)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 0.99))
def test_a_share_of_the_values_is_not_above(values: list[float], share: float) -> None:
    ascending = sorted(values)
    quantile = compute_quantile(ascending, share)
    assert sum(value <= quantile for value in ascending) >= share * len(ascending)


def test_callers_ask_for_different_images_and_everybody_asks_the_same() -> None:
    bodies = [make_request_body(caller, turn) for caller in range(16) for turn in range(1, 9)]
    assert len({(body["model"], body["prompt"], body["seed"]) for body in bodies}) == len(bodies)
    assert len({body["num_inference_steps"] for body in bodies}) == 4
    assert make_request_body(3, 2) == make_request_body(3, 2)
