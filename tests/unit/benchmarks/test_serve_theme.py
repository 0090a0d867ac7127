from typing import Any

from benchmarks.serve_theme import BOUND_S, compare_within_latency_bound


def turn(rate: float, p95_s: float, failures: int = 0) -> dict[str, Any]:
    return {"asked_per_s": rate, "images_per_s": rate, "p95_s": p95_s, "failures": failures}


def test_the_highest_rate_below_the_bound_counts() -> None:
    ours = [turn(2.0, 1.0), turn(3.0, BOUND_S), turn(4.0, BOUND_S + 1)]
    record = compare_within_latency_bound("fastapi", ours, [turn(2.0, 2.0), turn(3.0, 9.0)])
    assert record["highest"] == {"ours": 3.0, "theirs": 2.0}
    assert record["ratio"]["median"] == 1.5
    assert not record["at_least"]


def test_failures_do_not_count_and_who_never_was_below_is_said() -> None:
    ours = [turn(2.0, 1.0), turn(3.0, 1.0, failures=1)]
    record = compare_within_latency_bound("fastapi", ours, [turn(2.0, 9.0)])
    assert record["highest"] == {"ours": 2.0, "theirs": 0.0}
    assert record["ratio"]["median"] == 1.0
    assert record["at_least"]
