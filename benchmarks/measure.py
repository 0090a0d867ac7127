"""Two ways of doing one thing, timed in turns. A ratio above 1: we are faster."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dreambooth_ray.memory.out_of_memory import is_out_of_memory


@dataclass(frozen=True)
class WallAndCpuTime:
    """Seconds on the clock, and of processor time where one process did it all."""

    wall_s: float
    cpu_s: float | None = None


# Does the work once.
TimedWork = Callable[[], WallAndCpuTime]
# A ratio whose p95 is so many times its p5 is marked as unsteady.
MAX_SPREAD = 1.25


def make_timed(work: Callable[[], object]) -> TimedWork:
    """Time `work`, done by this process."""

    def run_timed() -> WallAndCpuTime:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        work()
        return WallAndCpuTime(time.perf_counter() - start_s, time.process_time() - start_cpu_s)

    return run_timed


def compute_quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, p5 and p95, interpolated linearly."""
    p5, median, p95 = np.percentile(np.asarray(values, dtype=np.float64), [5, 50, 95])
    return {"median": round(median, 5), "p5": round(p5, 5), "p95": round(p95, 5)}


@dataclass(frozen=True)
class BenchmarkCase:
    """What both sides do: `amount` of `unit` a turn, and at least `bar` times as fast by us.

    ours_amount: where our turn does another amount than theirs
    """

    name: str
    peer: str
    amount: float
    unit: str
    bar: float | None = None
    ours_amount: float | None = None


@dataclass
class _Side:
    """Rates of one side, `unit` a second of the clock, and of processor time."""

    run: TimedWork
    amount: float
    rates: list[float] = field(default_factory=list)
    cpu_rates: list[float] = field(default_factory=list)

    def run_turn(self, counts: bool) -> None:
        elapsed = self.run()
        if counts:
            self.rates.append(self.amount / elapsed.wall_s)
            if elapsed.cpu_s:
                self.cpu_rates.append(self.amount / elapsed.cpu_s)


def compare_sides(
    case: BenchmarkCase, ours: TimedWork, theirs: TimedWork, pairs: int, warmups: int = 1
) -> dict[str, Any]:
    """Warm up both, then A B A B: one ratio a pair, so that drift of the machine cancels.

    returns: the case's record; running out of memory is one too, under "out_of_memory"
    """
    sides = {
        "ours": _Side(ours, case.ours_amount or case.amount),
        "theirs": _Side(theirs, case.amount),
    }
    record: dict[str, Any] = {
        "case": case.name, "peer": case.peer, "unit": f"{case.unit}/s", "pairs": pairs,
        "warmups": warmups, "bar": case.bar,
    }  # fmt: skip
    for turn_index in range(warmups + pairs):
        for side_name, side in sides.items():
            try:
                side.run_turn(counts=turn_index >= warmups)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return {**record, "out_of_memory": side_name, "error": str(error)[:300]}
    our_side, their_side = sides["ours"], sides["theirs"]
    rate_summary = summarize_rates(our_side.rates, their_side.rates, case.bar)
    if our_side.cpu_rates and their_side.cpu_rates:
        # Of processor time: what a machine with other work on it can still tell.
        cpu_rate_pairs = zip(our_side.cpu_rates, their_side.cpu_rates, strict=True)
        rate_summary["cpu_ratio"] = compute_quantiles([a / b for a, b in cpu_rate_pairs])
    return {**record, **rate_summary}


def summarize_rates(
    ours: Sequence[float], theirs: Sequence[float], bar: float | None
) -> dict[str, Any]:
    """Both rates and their ratio a pair; whether it is steady, and whether it reaches the bar."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio_quantiles = compute_quantiles(ratios)
    record: dict[str, Any] = {
        "ours": compute_quantiles(ours), "theirs": compute_quantiles(theirs),
        "ratio": ratio_quantiles, "ratios": [round(r, 4) for r in ratios],
    }  # fmt: skip
    if ratio_quantiles["p95"] > MAX_SPREAD * ratio_quantiles["p5"]:
        record["unsteady"] = (
            f"p95 is {ratio_quantiles['p95'] / ratio_quantiles['p5']:.2f} times p5: the machine "
            "was not quiet, or the turns are too short; don't take the median for more than a "
            "direction"
        )
    if bar is not None:
        record["reached"] = bool(ratio_quantiles["median"] >= bar)
    return record
