import pytest

from cluster.fleet_settings import FleetSettings, parse_worker_range
from dreambooth_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"), [("4", (4, 4)), ("1-8", (1, 8)), ("0-2", (0, 2)), (" 3-3 ", (3, 3))]
)
def test_workers_are_one_number_or_two(text: str, expected: tuple[int, int]) -> None:
    assert parse_worker_range(text, 8) == expected


@pytest.mark.parametrize("text", ["", "0", "two", "4-2", "-1", "1-", "0-0", "1.5", "1-2-3"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--parallel='{text}' is no number of workers"):
        parse_worker_range(text, 8)


def test_each_worker_has_a_slot() -> None:
    with pytest.raises(ConfigError, match="--slots=4 can't be divided by --parallel=1-8"):
        parse_worker_range("1-8", 4)
    # Without batches subjects are trained each by itself.
    assert parse_worker_range("1-8", 0) == (1, 8)


def test_equal_bounds_are_workers_that_are_always_there() -> None:
    fixed = FleetSettings("s", slots=8, fewest=3, most=3, idle_s=5.0).bounds
    assert (list(fixed.shares), fixed.is_number_fixed) == ([3, 3, 2], True)
    scaled = FleetSettings("s", slots=8, fewest=0, most=2, idle_s=5.0).bounds
    assert (list(scaled.shares), scaled.fewest, scaled.idle_s) == ([4, 4], 0, 5.0)
    assert not scaled.is_number_fixed
