import pytest
import torch

from benchmarks.measure import (
    BenchmarkCase,
    WallAndCpuTime,
    compare_sides,
    compute_quantiles,
    make_timed,
    summarize_rates,
)


def test_ratio_is_of_pairs_and_above_one_where_we_are_faster() -> None:
    turns = []

    def side(name: str, times: list[float]) -> WallAndCpuTime:
        turns.append(name)
        return WallAndCpuTime(times.pop(0), 1.0)

    ours, theirs = [9.0, 1.0, 2.0, 4.0], [9.0, 2.0, 4.0, 8.0]
    case = BenchmarkCase("c", "p", amount=8, unit="images", bar=1.9)
    record = compare_sides(case, lambda: side("a", ours), lambda: side("b", theirs), pairs=3)
    assert turns == ["a", "b"] * 4
    assert record["ratios"] == [2.0, 2.0, 2.0]
    assert record["ratio"] == {"median": 2.0, "p5": 2.0, "p95": 2.0}
    assert record["ours"]["median"] == 4.0
    assert record["cpu_ratio"]["median"] == 1.0
    assert record["reached"] is True
    assert "unsteady" not in record


def test_warm_up_does_not_count() -> None:
    ours, theirs = [100.0, 1.0], [1.0, 1.0]
    case = BenchmarkCase("c", "p", 1, "images")
    record = compare_sides(
        case, lambda: WallAndCpuTime(ours.pop(0)), lambda: WallAndCpuTime(theirs.pop(0)), pairs=1
    )
    assert record["ratio"]["median"] == 1.0


def test_other_amounts_give_rates() -> None:
    case = BenchmarkCase("c", "p", amount=2, unit="images", ours_amount=4)
    record = compare_sides(case, lambda: WallAndCpuTime(1.0), lambda: WallAndCpuTime(1.0), pairs=2)
    assert record["ratio"]["median"] == 2.0


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_running_out_of_memory_is_a_result(side: str) -> None:
    def fail() -> WallAndCpuTime:
        raise torch.OutOfMemoryError("too little")

    runs = {"ours": lambda: WallAndCpuTime(1.0), "theirs": lambda: WallAndCpuTime(1.0), side: fail}
    record = compare_sides(
        BenchmarkCase("c", "p", 1, "images"), runs["ours"], runs["theirs"], pairs=2
    )
    assert record["out_of_memory"] == side
    assert "ratio" not in record


def test_other_errors_are_errors() -> None:
    def fail() -> WallAndCpuTime:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        compare_sides(BenchmarkCase("c", "p", 1, "images"), fail, fail, pairs=1)


def test_wide_spread_is_said() -> None:
    record = summarize_rates([1.0, 1.0, 2.0], [1.0, 1.0, 1.0], bar=1.5)
    assert "p95 is" in record["unsteady"]
    assert record["reached"] is False


def test_quantiles_interpolate() -> None:
    assert compute_quantiles([0.0, 1.0]) == {"median": 0.5, "p5": 0.05, "p95": 0.95}


def test_clock_runs() -> None:
    elapsed = make_timed(lambda: sum(range(1000)))()
    assert elapsed.wall_s > 0
    assert elapsed.cpu_s is not None
