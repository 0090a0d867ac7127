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

from benchmarks.measure import Case, Spent, Timed, compare
from benchmarks.runs import Run, about, make_config, running
from benchmarks.theme import Setting
from cluster.session import connection
from dreambooth_ray.config.machines import ClusterConfig

# Pairs of a photograph and a class image that a worker's step sees.
MANY_PAIRS = 4


class Runs:
    """Runs by workers and global batch, started together, which wait for their turns."""

    def __init__(
        self, stack: ExitStack, folder: Path, setting: Setting, method: str = "full"
    ) -> None:
        self._stack, self._folder, self._setting, self._method = stack, folder, setting, method
        self.steps = setting.pick(6, 15)

    def start(self, *wanted: tuple[int, int]) -> list[Run]:
        """For each (workers, global batch in pairs) a run at its first step."""
        runs = []
        for k, (workers, batch) in enumerate(wanted):
            more = f"train.batch_size={batch}", f"cluster.workers={workers}"
            name = f"{self._method}-{workers}-{batch}-{k}"
            config = make_config(self._folder, self._setting, name, workers, *more)
            runs.append(self._stack.enter_context(running(config)))
        for run in runs:
            run.ready()
        return runs

    def compare(
        self, name: str, ours: Timed, theirs: Run, images: tuple[int, int], bar: float | None
    ) -> dict[str, Any]:
        """images: that a step of ours sees, and one of theirs."""
        about = Case(
            name, "one_worker", images[1] * self.steps, "images", bar, images[0] * self.steps
        )
        return compare(about, ours, partial(theirs.steps, self.steps), self._setting.pick(3, 7))


def together(runs: list[Run], steps: int) -> Spent:
    """Runs of their own, at once."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(lambda run: run.steps(steps), runs))
    return Spent(time.perf_counter() - began)


def measure(setting: Setting) -> dict[str, Any]:
    """The largest number of workers against one."""
    torch.set_num_threads(1)
    many = max(setting.workers)
    with (
        tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name,
        connection(ClusterConfig(), 3 * many + 4),
    ):
        cases = _large(Path(name), setting, many)
        if setting.profile == "full":
            cases += [_small(Path(name), setting, many), _lora(Path(name), setting, many)]
        config = make_config(Path(name), setting, "many", many)
    ratio = {case["case"].partition(":")[0]: case["ratio"]["median"] for case in cases}
    return {
        "headline": {"one_worker": cases[0]["case"]},
        "cases": cases,
        "efficiency": {name: round(value / many, 3) for name, value in ratio.items()},
        "lost": lost(ratio, many),
        "below_the_bar": below(cases, ratio),
        "configuration": {
            "workers": many, "steps_a_turn": setting.pick(6, 15), "run": about(config),
        },
    }  # fmt: skip


def _large(folder: Path, setting: Setting, many: int) -> list[dict[str, Any]]:
    """Weak and, in full, the ceiling and strong, with several pairs a worker.

    Each with its own runs alone: one that waits costs a machine of two cores a hundredth or two.
    """
    pairs, images = MANY_PAIRS, 2 * MANY_PAIRS
    one, weak, strong = (1, pairs), (many, pairs * many), (many, pairs)
    with ExitStack() as stack:
        runs = Runs(stack, folder, setting)
        alone, both = runs.start(one, weak)
        name, step = f"weak: {many} workers, {pairs} pairs each", partial(both.steps, runs.steps)
        cases = [runs.compare(name, step, alone, (images * many, images), _bar(many))]
    if setting.profile == "smoke":
        return cases
    with ExitStack() as stack:
        runs = Runs(stack, folder, setting, "full-apart")
        apart = runs.start(*[one] * many)
        name, step = (
            f"ceiling: {many} runs apart, {pairs} pairs each",
            partial(together, apart, runs.steps),
        )
        cases.append(runs.compare(name, step, apart[0], (images * many, images), None))
    with ExitStack() as stack:
        runs = Runs(stack, folder, setting, "full-strong")
        alone, both = runs.start(one, strong)
        name, step = f"strong: {many} workers share {pairs} pairs", partial(both.steps, runs.steps)
        cases.append(runs.compare(name, step, alone, (images, images), None))
    return cases


def lost(ratio: dict[str, float], many: int) -> dict[str, float]:
    """Shares of what many workers could do at most, by what takes them; ratio: by case."""
    if "ceiling" not in ratio:
        return {}
    return {
        "to the machine": round(1 - ratio["ceiling"] / many, 3),
        "to the exchange, of what is left": round(1 - ratio["weak"] / ratio["ceiling"], 3),
    }


def below(cases: list[dict[str, Any]], ratio: dict[str, float]) -> list[str]:
    """Why bars were not reached, a sentence each; ratio: by case."""
    if "ceiling" not in ratio:
        return []
    return [
        f"{case['case']}: {case['ratio']['median']:.2f} of {case['bar']}. As many runs that "
        f"exchange nothing come to {ratio['ceiling']:.2f}: so much the machine allows, whose cores "
        "also keep Ray's processes and share their memory's rate."
        for case in cases
        if not case.get("reached", True)
    ]


def _small(folder: Path, setting: Setting, many: int) -> dict[str, Any]:
    """One pair a worker: the least work that an exchange of all gradients can hide behind."""
    with ExitStack() as stack:
        runs = Runs(stack, folder, setting, "full-small")
        both, one = runs.start((many, many), (1, 1))
        name, bar = f"weak, one pair each: {many} workers", _bar(many)
        return runs.compare(name, partial(both.steps, runs.steps), one, (2 * many, 2), bar)


def _lora(folder: Path, setting: Setting, many: int) -> dict[str, Any]:
    """Adapters alone, whose gradients are a hundredth of the weights': hardly an exchange."""
    pairs, images = MANY_PAIRS, 2 * MANY_PAIRS
    with ExitStack() as stack:
        runs = Runs(stack, folder, setting, "lora")
        both, one = runs.start((many, pairs * many), (1, pairs))
        name, bar = f"weak, lora: {many} workers, {pairs} pairs each", _bar(many)
        step = partial(both.steps, runs.steps)
        return runs.compare(name, step, one, (images * many, images), bar)


def _bar(many: int) -> float | None:
    return 0.925 * many if many > 1 else None
