"""Theme `fleet`: subjects in batches that they share, against other ways to train as many.

Peers: `warm`, one loaded worker that trains one subject after another (steps alone, one thread);
`separate`, `dreambooth train` of each, one after the other; `diffusers`, the plain LoRA loop as a
program of its own for each, two at a time. Whole jobs go from the command to the saved adapters;
class images are given to all of them.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.ceiling import measure_ceilings
from benchmarks.commands import run_command
from benchmarks.fleet_steps import OVERRIDES, compare_steps, count_step_flops
from benchmarks.gated_runs import dump_portable_config, make_config
from benchmarks.measure import BenchmarkCase, WallAndCpuTime, compare_sides, make_timed
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.metrics_log import read_metrics

NUM_SUBJECTS, NUM_STEPS, NUM_WORKERS = 32, 400, 2
BARS = {"separate": 3.0, "diffusers": 2.5}
DREAMBOOTH = str(Path(sys.executable).with_name("dreambooth"))


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """Steps by the number of subjects; in full profile whole jobs as well."""
    torch.set_num_threads(1)
    subject_counts = (1, 4) if setting.profile == "smoke" else (1, 2, 4, 8, 16, 32)
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        folder = Path(temp_folder)
        config = make_config(folder, setting, "lora-steps", 1, *OVERRIDES)
        cases = [
            compare_steps(
                setting,
                folder,
                count,
                setting.pick(4, 12),
                setting.pick(2, 5),
            )
            for count in subject_counts
        ]
        step_flops = count_step_flops(config)
        job_results: dict[str, Any] = {}
        if setting.profile == "full":
            job_results = _compare_jobs(setting, folder)
            cases += job_results.pop("cases")
    return {
        "headline": {"warm": f"steps, {subject_counts[-1]} subjects"},
        "cases": cases,
        **job_results,
        "step_gflops": round(step_flops / 1e9, 3),
        "ceiling_subject_steps_s": round(
            measure_ceilings()["matmul_gflops"] / (step_flops / 1e9), 1
        ),
        "configuration": {"run": dump_portable_config(config), "jobs": _describe_jobs()},
    }


def _describe_jobs() -> dict[str, int]:
    return {"subjects": NUM_SUBJECTS, "steps": NUM_STEPS, "workers": NUM_WORKERS}


class FleetComparison:
    """As many subjects, trained in one way after another; each turn in folders of its own."""

    def __init__(
        self, setting: BenchmarkSettings, folder: Path, num_subjects: int, num_steps: int
    ) -> None:
        self._folder, self._turns = folder, itertools.count()
        self.names = [f"robot-{number}" for number in range(num_subjects)]
        for seed, name in enumerate(self.names):
            write_photographs(folder / "subjects" / name, seed, "robot", 4, 256)
        self._config = make_config(
            folder, setting, "lora-jobs", 1, f"train.steps={num_steps}", "sample.every=0",
            "train.text_encoder=false", "train.lr=1.0e-3", f"checkpoint.every={num_steps}",
        )  # fmt: skip
        self.storages: dict[str, Path] = {}

    def _make_turn_folder(self, side: str) -> Path:
        turn_folder = self._folder / f"{side}-{next(self._turns)}"
        turn_folder.mkdir()
        self.storages[side] = turn_folder / "out"
        return turn_folder

    def _make_subject_config(self, name: str, storage: Path) -> Config:
        config = self._config
        subject_config = config.subject.model_copy(
            update={"photos": str(self._folder / "subjects" / name)}
        )
        storage_config = config.storage.model_copy(update={"uri": str(storage)})
        return config.model_copy(
            update={"run_id": name, "subject": subject_config, "storage": storage_config}
        )

    def run_fleet(self) -> None:
        """In slots of two workers."""
        turn_folder = self._make_turn_folder("slots")
        recipe_file = turn_folder / "recipe.yaml"
        recipe_file.write_text(
            dump_config(self._make_subject_config(self.names[0], turn_folder / "out"))
        )
        fleet_subjects = [
            {"id": name, "photos": str(self._folder / "subjects" / name), "class_noun": "robot"}
            for name in self.names
        ]
        fleet_settings = {
            "slots": len(self.names),
            "parallel": NUM_WORKERS,
            "subjects": fleet_subjects,
        }
        fleet_file = turn_folder / "subjects.yaml"
        fleet_file.write_text(yaml.safe_dump({"recipe": str(recipe_file), **fleet_settings}))
        run_command([DREAMBOOTH, "fleet", str(fleet_file)])

    def run_separately(self) -> None:
        """`dreambooth train` of one after the other."""
        turn_folder = self._make_turn_folder("separate")
        for name in self.names:
            recipe_file = turn_folder / f"{name}.yaml"
            recipe_file.write_text(
                dump_config(self._make_subject_config(name, turn_folder / "out"))
            )
            run_command([DREAMBOOTH, "train", str(recipe_file)])

    def run_plain_jobs_in_parallel(self) -> None:
        """The plain loop's programs, two at a time, a thread each."""
        turn_folder = self._make_turn_folder("diffusers")

        def run_plain_job(name: str) -> None:
            recipe_file = turn_folder / f"{name}.yaml"
            recipe_file.write_text(
                dump_config(self._make_subject_config(name, turn_folder / "out"))
            )
            plain_command = [sys.executable, "-m", "benchmarks.plain_job"]
            run_command([*plain_command, str(recipe_file), str(turn_folder / name)])

        with ThreadPoolExecutor(2) as thread_pool:
            list(thread_pool.map(run_plain_job, self.names))

    def compare_curves(self) -> float:
        """Largest difference of a loss in slots from that of a run alone."""
        loss_differences = [0.0]
        for name in self.names:
            loss_curves = [
                [record["loss"] for record in read_metrics(Store(str(storage)).sub(f"runs/{name}"))]
                for storage in (self.storages["slots"], self.storages["separate"])
            ]
            loss_differences += [abs(a - b) for a, b in zip(*loss_curves, strict=True)]
        return max(loss_differences)


def _compare_jobs(
    setting: BenchmarkSettings,
    folder: Path,
    num_subjects: int = NUM_SUBJECTS,
    num_steps: int = NUM_STEPS,
) -> dict[str, Any]:
    """Each peer once, ours before and after them: minutes each."""
    training_jobs = FleetComparison(setting, folder, num_subjects, num_steps)
    run_ours = make_timed(training_jobs.run_fleet)
    our_times = [run_ours()]
    peer_times = {
        "diffusers": make_timed(training_jobs.run_plain_jobs_in_parallel)(),
        "separate": make_timed(training_jobs.run_separately)(),
    }
    our_times.append(run_ours())
    cases = [
        compare_sides(
            BenchmarkCase(
                f"{num_subjects} subjects of {num_steps} steps", peer, num_subjects,
                "subjects", BARS[peer],
            ),
            _make_times_replayer(our_times), _make_times_replayer([theirs]),
            len(our_times), warmups=0,
        )
        for peer, theirs in peer_times.items()
    ]  # fmt: skip
    return {
        "cases": cases,
        "subjects_an_hour": {
            "ours": round(3600 * cases[0]["ours"]["median"], 1),
            **{case["peer"]: round(3600 * case["theirs"]["median"], 1) for case in cases},
        },
        "largest_loss_difference": training_jobs.compare_curves(),
    }


def _make_times_replayer(measured: list[WallAndCpuTime]) -> Callable[[], WallAndCpuTime]:
    """What was measured, in turns; their own processor's time is not that of their programs."""
    measured_times = itertools.cycle(measured)
    return lambda: WallAndCpuTime(next(measured_times).wall_s)
