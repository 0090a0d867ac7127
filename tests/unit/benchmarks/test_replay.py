import pytest

from benchmarks.replay import Course


def test_a_course_tells_seconds_of_a_step_and_of_a_start() -> None:
    grown = [(0.0, 1), (0.5, 2), (1.0, 3), (1.5, 4), (2.1, 5), (9.0, 2), (11.0, 3), (11.5, 4)]
    course = Course(grown, [1.75])
    assert course.step_s == pytest.approx(0.5)
    # The step that a living worker still wrote down is none after the start.
    assert course.start_s == pytest.approx(11.0 - 1.75 - 0.5)
