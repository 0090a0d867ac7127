import pytest

from benchmarks.replay import Course


def test_a_course_tells_seconds_of_a_step_and_of_a_start() -> None:
    cold = [(float(n), n) for n in range(1, 21)]
    warm = [(20 + n / 2, 20 + n) for n in range(1, 11)]
    # The step that a living worker still wrote down is none after the start.
    after = [(25.6, 31), (33.0, 20), (36.0, 21), (36.5, 22)]
    course = Course(cold + warm + after, [25.3])
    assert course.step_s == pytest.approx(0.5)
    assert course.start_s == pytest.approx(36.0 - 25.3 - 0.5)
