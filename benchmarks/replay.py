"""The planner's simulation of failures held against real runs on one, two and four workers.

    python -m benchmarks.replay --json benchmarks/results/replay.json

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

from benchmarks.cluster_plan import replay_s
from benchmarks.conditions import conditions
from benchmarks.recovery import last_step, training, wait, workers
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs

SIZES, EVERY, BATCH, STEPS, FIRST_STEPS = (1, 2, 4), 30, 4, 240, 200
FIRST_KILL_AT = 120
# The first steps are slower: other processes still start, and class images are being drawn.
WARM_UP = 45
# A worker that lives may still write down a step just after another was killed.
SETTLED_S, WHOLE_RUN_S = 2.0, 900.0


@dataclass
class Course:
    """A run's metrics as they grew: (seconds after the first step, newest step), and its kills."""

    grown: list[tuple[float, int]]
    kills_s: list[float]

    @property
    def step_s(self) -> float:
        """Of a warm step before the first kill, waits for checkpoints included."""
        before = [(at, n) for at, n in self.grown if at <= self.kills_s[0] and n >= WARM_UP]
        return (before[-1][0] - before[0][0]) / (before[-1][1] - before[0][1])

    @property
    def start_s(self) -> float:
        """From the first kill to the beginning of the next step."""
        after = [(at, step) for at, step in self.grown if at > self.kills_s[0] + SETTLED_S]
        risen = (b[0] for a, b in itertools.pairwise(after) if b[1] > a[1])
        return next(risen) - self.kills_s[0] - self.step_s


def follow(
    folder: Path, size: int, steps: int, failures_s: list[float], at_step: int = 0
) -> Course:
    """Make a run, killing one of its workers at each of the given times after the one before.

    at_step: the first kill waits for this step as well
    """
    run = Store(str(folder / "storage")).sub(paths.run(f"{size}-{steps}"))
    due, course = list(failures_s), Course([], [])
    keys = [
        f"cluster.workers={size}", f"train.batch_size={BATCH}", f"train.steps={steps}",
        f"checkpoint.every={EVERY}",
    ]  # fmt: skip
    with training(folder, str(folder / "storage"), f"{size}-{steps}", *keys) as process:
        wait(process, lambda: last_step(run) > 0)
        began = time.monotonic()

        def ended() -> bool:
            now, step = time.monotonic() - began, last_step(run)
            if not course.grown or course.grown[-1][1] != step:
                course.grown.append((now, step))
            since = course.kills_s[-1] if course.kills_s else 0.0
            is_due = due and now - since >= due[0] and step >= at_step
            if is_due and (living := workers(process)):
                random.choice(living).kill()
                course.kills_s.append(now)
                due.pop(0)
            return step >= steps

        wait(process, ended, WHOLE_RUN_S)
    return course


def compare(folder: Path, size: int) -> dict[str, Any]:
    """One size: what the simulation says, and what came."""
    first = follow(folder, size, FIRST_STEPS, [0.0], FIRST_KILL_AT)
    step_s, start_s = first.step_s, first.start_s
    work_s, chance = (STEPS - 1) * step_s, random.Random(size)
    failures_s = [
        chance.uniform(0.2, 0.5) * work_s,
        start_s + chance.uniform(0.2, 0.5) * work_s,
    ]
    said_s = replay_s(work_s, EVERY * step_s, 0.0, start_s, iter(failures_s), 0.0)
    second = follow(folder, size, STEPS, failures_s)
    took_s = second.grown[-1][0]
    return {
        "workers": size, "step_s": step_s, "start_s": start_s, "failures_s": failures_s,
        "killed_at_s": second.kills_s, "without_failures_s": work_s, "simulated_s": said_s,
        "measured_s": took_s, "ratio": round(took_s / said_s, 4),
    }  # fmt: skip


def main() -> None:
    """Compare each size, then print and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workers", type=int, nargs="*", default=SIZES)
    given, rows = parser.parse_args(), []
    for size in given.workers:
        with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name:
            write_photographs(Path(name) / "photos", 7, "robot", 5, 256)
            rows.append(compare(Path(name), size))
            print(json.dumps(rows[-1]), flush=True)
    setting = {"steps": STEPS, "checkpoint_every": EVERY, "photographs_a_step": BATCH}
    record = {"rows": rows, "setting": setting, "conditions": conditions()}
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
