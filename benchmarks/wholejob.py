"""Theme `wholejob`: from the command to the saved model, beside the plain loop as a program.

What a person waits for: imports, processes, data, training, saving. Both are given the same
photographs and class images. `python -m benchmarks.wholejob` writes the full record.
"""

import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.commands import run_command
from benchmarks.gated_runs import dump_portable_config, make_config
from benchmarks.measure import BenchmarkCase, compare_sides, make_timed
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.config.load import dump_config

METHODS = ("lora", "full")
# How many times as fast as the plain program, by steps.
BARS = {50: 0.75, 350: 1.2}
DREAMBOOTH = str(Path(sys.executable).with_name("dreambooth"))


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """Jobs of each method and length, in turns; in smoke profile the shortest once."""
    benchmark_cases, config = list[dict[str, Any]](), None
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        for method in METHODS[: setting.pick(1, 2)]:
            for steps in list(BARS)[: setting.pick(1, 2)]:
                config = make_config(
                    Path(temp_folder), setting, method, 1, f"train.steps={steps}", "sample.every=0"
                )
                recipe_file = Path(temp_folder) / f"{method}-{steps}.yaml"
                recipe_file.write_text(dump_config(config))
                benchmark_cases.append(_compare_jobs(method, steps, recipe_file, setting))
    return {
        "headline": {"diffusers": benchmark_cases[-1]["case"]},
        "cases": benchmark_cases,
        "configuration": {
            "run": dump_portable_config(config) if config else {},
            "class_images": "given",
        },
    }


def _compare_jobs(
    method: str, steps: int, recipe: Path, setting: BenchmarkSettings
) -> dict[str, Any]:
    job_counter, plain_command = count(), [sys.executable, "-m", "benchmarks.plain_job"]

    def run_our_job() -> None:
        run_command([DREAMBOOTH, "train", str(recipe), f"run_id={recipe.stem}-{next(job_counter)}"])

    def run_plain_loop_job() -> None:
        run_command([*plain_command, str(recipe), str(recipe.with_suffix(f".{next(job_counter)}"))])

    benchmark_case = BenchmarkCase(
        f"{method}, {steps} steps", "diffusers", 1.0, "jobs", BARS[steps]
    )
    return compare_sides(
        benchmark_case, make_timed(run_our_job), make_timed(run_plain_loop_job), setting.pick(1, 3)
    )


def main() -> None:
    """Measure and write the record."""
    subprocess.run(
        [DREAMBOOTH, "bench", "wholejob", "--json", "benchmarks/results/wholejob.json"], check=True
    )


if __name__ == "__main__":
    main()
