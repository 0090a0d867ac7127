import pytest

from benchmarks.failure_simulation_check import RunTrace


def test_a_course_tells_seconds_of_a_step_and_of_a_start() -> None:
    cold = [(float(n), n) for n in range(1, 46)]
    warm = [(45 + n / 2, 45 + n) for n in range(1, 11)]
    # The step that a living worker still wrote down is none after the start.
    after = [(50.6, 56), (58.0, 45), (61.0, 46), (61.5, 47)]
    trace = RunTrace(cold + warm + after, [50.3])
    assert trace.step_s == pytest.approx(0.5)
    assert trace.restart_s == pytest.approx(61.0 - 50.3 - 0.5)
