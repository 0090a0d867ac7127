"""The planner's simulation of failures held against real runs on one, two and four workers.

    python -m benchmarks.failure_simulation_check --json benchmarks/results/replay.json

A first run of each size, with one worker killed, tells the seconds of a step and of a new start.
From these alone the simulation says how long a second run takes, whose workers are killed at other
moments; then that run is made. Time runs from a run's first step to its last.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cluster_cost_plan import simulate_job_s
from benchmarks.conditions import read_conditions
from benchmarks.recovery import find_workers, read_last_step, start_training, wait_for
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs

SIZES, EVERY, BATCH, STEPS, FIRST_STEPS = (1, 2, 4), 30, 4, 240, 200
FIRST_KILL_AT = 120
# The first steps are slower: other processes still start, and class images are being generated.
WARM_UP = 45
# A worker that lives may still write down a step just after another was killed.
SETTLED_S, WHOLE_RUN_S = 2.0, 900.0


@dataclass
class RunTrace:
    """A run's metrics as they grew: (seconds after the first step, newest step), and its kills."""

    progress: list[tuple[float, int]]
    kills_s: list[float]

    @property
    def step_s(self) -> float:
        """Of a warm step before the first kill, waits for checkpoints included."""
        progress_before_kill = [
            (at, n) for at, n in self.progress if at <= self.kills_s[0] and n >= WARM_UP
        ]
        return (progress_before_kill[-1][0] - progress_before_kill[0][0]) / (
            progress_before_kill[-1][1] - progress_before_kill[0][1]
        )

    @property
    def restart_s(self) -> float:
        """From the first kill to the beginning of the next step."""
        progress_after_kill = [
            (at, step) for at, step in self.progress if at > self.kills_s[0] + SETTLED_S
        ]
        next_step_times_s = (
            b[0] for a, b in itertools.pairwise(progress_after_kill) if b[1] > a[1]
        )
        return next(next_step_times_s) - self.kills_s[0] - self.step_s


def train_and_kill_workers(
    folder: Path, size: int, steps: int, failures_s: list[float], at_step: int = 0
) -> RunTrace:
    """Make a run, killing one of its workers at each of `failures_s`, counted from the one before.

    at_step: the first kill waits for this step as well
    """
    run_store = Store(str(folder / "storage")).sub(paths.run(f"{size}-{steps}"))
    pending_failures_s, trace = list(failures_s), RunTrace([], [])
    overrides = [
        f"cluster.workers={size}", f"train.batch_size={BATCH}", f"train.steps={steps}",
        f"checkpoint.every={EVERY}",
    ]  # fmt: skip
    with start_training(folder, str(folder / "storage"), f"{size}-{steps}", *overrides) as process:
        wait_for(process, lambda: read_last_step(run_store) > 0)
        first_step_time_s = time.monotonic()

        def kill_when_due() -> bool:
            elapsed_s, step = time.monotonic() - first_step_time_s, read_last_step(run_store)
            if not trace.progress or trace.progress[-1][1] != step:
                trace.progress.append((elapsed_s, step))
            last_kill_s = trace.kills_s[-1] if trace.kills_s else 0.0
            is_kill_due = (
                pending_failures_s
                and elapsed_s - last_kill_s >= pending_failures_s[0]
                and step >= at_step
            )
            if is_kill_due and (living_workers := find_workers(process)):
                random.choice(living_workers).kill()
                trace.kills_s.append(elapsed_s)
                pending_failures_s.pop(0)
            return step >= steps

        wait_for(process, kill_when_due, WHOLE_RUN_S)
    return trace


def compare_with_simulation(folder: Path, size: int) -> dict[str, Any]:
    """One size: simulated and measured time."""
    first_trace = train_and_kill_workers(folder, size, FIRST_STEPS, [0.0], FIRST_KILL_AT)
    step_s, restart_s = first_trace.step_s, first_trace.restart_s
    work_s, rng = (STEPS - 1) * step_s, random.Random(size)
    failure_gaps_s = [
        rng.uniform(0.2, 0.5) * work_s,
        restart_s + rng.uniform(0.2, 0.5) * work_s,
    ]
    simulated_job_s = simulate_job_s(
        work_s, EVERY * step_s, 0.0, restart_s, iter(failure_gaps_s), 0.0
    )
    second_trace = train_and_kill_workers(folder, size, STEPS, failure_gaps_s)
    measured_run_s = second_trace.progress[-1][0]
    return {
        "workers": size, "step_s": step_s, "start_s": restart_s, "failures_s": failure_gaps_s,
        "killed_at_s": second_trace.kills_s, "without_failures_s": work_s,
        "simulated_s": simulated_job_s, "measured_s": measured_run_s,
        "ratio": round(measured_run_s / simulated_job_s, 4),
    }  # fmt: skip


def main() -> None:
    """Compare each size, then print and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workers", type=int, nargs="*", default=SIZES)
    arguments, comparison_rows = parser.parse_args(), []
    for num_workers in arguments.workers:
        with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
            write_photographs(Path(temp_folder) / "photos", 7, "robot", 5, 256)
            comparison_rows.append(compare_with_simulation(Path(temp_folder), num_workers))
            print(json.dumps(comparison_rows[-1]), flush=True)
    replay_setting = {"steps": STEPS, "checkpoint_every": EVERY, "photographs_a_step": BATCH}
    record = {"rows": comparison_rows, "setting": replay_setting, "conditions": read_conditions()}
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
