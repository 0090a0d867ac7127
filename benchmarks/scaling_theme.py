"""Theme `scaling`: training on several workers against one, one thread a worker.

Weak: each worker has the one worker's batch. Strong: they share it. The ceiling is what as many
runs reach side by side that exchange nothing: what is lost to it the machine takes, the rest is
the exchange of gradients.
"""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gated_runs import GatedRun, dump_portable_config, make_config, start_gated_run
from benchmarks.measure import BenchmarkCase, TimedWork, WallAndCpuTime, compare_sides
from benchmarks.theme import BenchmarkSettings
from cluster.session import ray_connection
from dreambooth_ray.config.machines import ClusterConfig

# Pairs of a photograph and a class image that a worker's step sees.
MANY_PAIRS = 4


class GatedRunGroup:
    """Runs by workers and global batch, started together; each waits at its StepGate."""

    def __init__(
        self, stack: ExitStack, folder: Path, setting: BenchmarkSettings, method: str
    ) -> None:
        self._stack, self._folder, self._setting, self._method = stack, folder, setting, method
        self.steps = steps_a_turn(setting)

    def start(self, *sizes: tuple[int, int]) -> list[GatedRun]:
        """For each (workers, global batch in pairs) a run at its first step."""
        started_runs = []
        for k, (num_workers, pairs_per_batch) in enumerate(sizes):
            overrides = f"train.batch_size={pairs_per_batch}", f"cluster.workers={num_workers}"
            run_name = f"{self._method}-{num_workers}-{pairs_per_batch}-{k}"
            config = make_config(self._folder, self._setting, run_name, num_workers, *overrides)
            started_runs.append(self._stack.enter_context(start_gated_run(config)))
        for started_run in started_runs:
            started_run.wait_until_ready()
        return started_runs

    def time_against_one_worker_run(
        self,
        name: str,
        ours: TimedWork,
        theirs: GatedRun,
        images: tuple[int, int],
        bar: float | None,
    ) -> dict[str, Any]:
        """images: that a step of ours sees, and one of theirs."""
        case = BenchmarkCase(
            name, "one_worker", images[1] * self.steps, "images", bar, images[0] * self.steps
        )
        return compare_sides(
            case, ours, partial(theirs.run_steps, self.steps), self._setting.pick(3, 7)
        )


def steps_a_turn(setting: BenchmarkSettings) -> int:
    """Of every run."""
    return setting.pick(4, 15)


def run_together(runs: list[GatedRun], steps: int) -> WallAndCpuTime:
    """Runs of their own, at once."""
    start_s = time.perf_counter()
    with ThreadPoolExecutor(len(runs)) as thread_pool:
        list(thread_pool.map(lambda run: run.run_steps(steps), runs))
    return WallAndCpuTime(time.perf_counter() - start_s)


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """The largest number of workers against one."""
    torch.set_num_threads(1)
    num_workers = max(setting.workers)
    with (
        tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder,
        ray_connection(ClusterConfig(), 3 * num_workers + 4, is_bare=True),
    ):
        cases = _measure_cases(Path(temp_folder), setting, num_workers)
        config = make_config(Path(temp_folder), setting, "many", num_workers)
    ratio_by_case = {case["case"].partition(":")[0]: case["ratio"]["median"] for case in cases}
    return {
        "headline": {"one_worker": cases[0]["case"]},
        "cases": cases,
        "efficiency": {
            name: round(value / num_workers, 3) for name, value in ratio_by_case.items()
        },
        "lost": compute_lost_speedup(ratio_by_case, num_workers),
        "below_the_bar": explain_missed_bars(cases, ratio_by_case),
        "configuration": {
            "workers": num_workers, "steps_a_turn": steps_a_turn(setting),
            "run": dump_portable_config(config),
        },
    }  # fmt: skip


def _compare_with_one_worker(
    folder: Path,
    setting: BenchmarkSettings,
    name: str,
    many: tuple[int, int],
    pairs: int,
    label: str,
) -> dict[str, Any]:
    """Several workers against one that has `pairs` a step, with no other run beside them.

    One that waits costs a machine of two cores a hundredth or two.
    many: workers and their global batch in pairs; label: of the runs, begins with their method
    """
    with ExitStack() as stack:
        run_group = GatedRunGroup(stack, folder, setting, label)
        one_worker_run, many_worker_run = run_group.start((1, pairs), many)
        min_speedup = _compute_min_speedup(many[0]) if name.startswith("weak") else None
        run_turn = partial(many_worker_run.run_steps, run_group.steps)
        return run_group.time_against_one_worker_run(
            name, run_turn, one_worker_run, (2 * many[1], 2 * pairs), min_speedup
        )


def _measure_ceiling(folder: Path, setting: BenchmarkSettings, many: int) -> dict[str, Any]:
    """As many runs, which exchange nothing, at once."""
    with ExitStack() as stack:
        run_group = GatedRunGroup(stack, folder, setting, "full-apart")
        separate_runs = run_group.start(*[(1, MANY_PAIRS)] * many)
        case_name = f"ceiling: {many} runs apart, {MANY_PAIRS} pairs each"
        images_per_step, run_turn = (
            2 * MANY_PAIRS,
            partial(run_together, separate_runs, run_group.steps),
        )
        return run_group.time_against_one_worker_run(
            case_name, run_turn, separate_runs[0], (images_per_step * many, images_per_step), None
        )


def _measure_cases(folder: Path, setting: BenchmarkSettings, many: int) -> list[dict[str, Any]]:
    """Weak and, in full, the ceiling, strong, weak with the least work, and adapters alone."""
    pairs_per_worker = MANY_PAIRS
    compare_with_one_worker = partial(_compare_with_one_worker, folder, setting)
    weak_scaling_name = f"weak: {many} workers, {pairs_per_worker} pairs each"
    cases = [
        compare_with_one_worker(
            weak_scaling_name, (many, pairs_per_worker * many), pairs_per_worker, "full"
        )
    ]
    if setting.profile == "smoke":
        return cases
    # One pair a worker is the least that an exchange of all gradients can hide behind; the
    # gradients of adapters are a hundredth of the weights': hardly an exchange.
    strong_scaling_name = f"strong: {many} workers share {pairs_per_worker} pairs"
    small_batch_name, lora_case_name = (
        f"weak, one pair each: {many} workers",
        f"weak, lora: {many} workers, {pairs_per_worker} pairs each",
    )
    return [
        *cases,
        _measure_ceiling(folder, setting, many),
        compare_with_one_worker(
            strong_scaling_name, (many, pairs_per_worker), pairs_per_worker, "full-strong"
        ),
        compare_with_one_worker(small_batch_name, (many, many), 1, "full-small"),
        compare_with_one_worker(
            lora_case_name, (many, pairs_per_worker * many), pairs_per_worker, "lora"
        ),
    ]


def compute_lost_speedup(ratio: dict[str, float], many: int) -> dict[str, float]:
    """Shares of what many workers could do at most, by what takes them; ratio: by case."""
    if "ceiling" not in ratio:
        return {}
    return {
        "to the machine": round(1 - ratio["ceiling"] / many, 3),
        "to the exchange, of what is left": round(1 - ratio["weak"] / ratio["ceiling"], 3),
    }


def explain_missed_bars(cases: list[dict[str, Any]], ratio: dict[str, float]) -> list[str]:
    """Why bars were not reached, a sentence each; ratio: by case."""
    if "ceiling" not in ratio:
        return []
    return [
        f"{case['case']}: {case['ratio']['median']:.2f} of {case['bar']}. As many runs that "
        f"exchange nothing come to {ratio['ceiling']:.2f}: so much the machine allows, whose cores "
        "also keep Ray's processes and share their memory's rate. To exchange gradients and wait "
        f"for the slower worker, takes {1 - case['ratio']['median'] / ratio['ceiling']:.0%} of it."
        for case in cases
        if not case.get("reached", True)
    ]


def _compute_min_speedup(many: int) -> float | None:
    return 0.925 * many if many > 1 else None
