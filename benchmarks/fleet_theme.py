"""A fleet against the same subjects trained one after the other, in whole commands.

    python -m benchmarks.fleet_theme --json benchmarks/results/fleet.json

Both on a Ray of their own on this machine, with the same settings and one set of class images:
the separate runs share theirs too, so what differs is one start of Ray and two subjects at once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.conditions import read_conditions
from dreambooth_ray.toyworld.photoshoot import write_photographs

RECIPE = "toy-robot.yaml"
SETTINGS = [
    "train.method=lora", "cluster.workers=1", "prior.count=16", "prior.actors=1", "sample.every=0",
]  # fmt: skip


def time_command(*words: str) -> float:
    """Seconds that `dreambooth WORDS` took."""
    program = str(Path(sys.executable).with_name("dreambooth"))
    start_s = time.perf_counter()
    subprocess.run(
        [program, *words], check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return time.perf_counter() - start_s


def measure(count: int, steps: int, parallel: int, folder: Path) -> dict[str, Any]:
    """Both sides in seconds, and how many times the fleet is quicker."""
    names = [f"robot-{k}" for k in range(count)]
    for seed, name in enumerate(names):
        write_photographs(folder / "photos" / name, seed, "robot", 4, size_px=96)
    settings = [*SETTINGS, f"train.steps={steps}"]

    def time_separate_runs() -> float:
        storage_override = f"storage.uri={folder / 'separate'}"
        return sum(
            time_command("train", RECIPE, *settings, storage_override, f"run_id={name}",
                    f"subject.photos={folder / 'photos' / name}")
            for name in names
        )  # fmt: skip

    def time_fleet() -> float:
        subjects = [
            {"id": name, "photos": str(folder / "photos" / name), "class_noun": "robot"}
            for name in names
        ]
        overrides = [*settings, f"storage.uri={folder / 'fleet'}"]
        file = folder / "subjects.yaml"
        fleet_settings = {"recipe": RECIPE, "overrides": overrides, "parallel": parallel}
        file.write_text(yaml.safe_dump({**fleet_settings, "subjects": subjects}))
        return time_command("fleet", str(file))

    fleet_s, separate_s = time_fleet(), time_separate_runs()
    equal = all(
        (folder / "fleet/runs" / name / "metrics.jsonl").read_bytes()
        == (folder / "separate/runs" / name / "metrics.jsonl").read_bytes()
        for name in names
    )
    return {
        "subjects": count,
        "steps": steps,
        "parallel": parallel,
        "seconds": {"fleet": round(fleet_s, 1), "separate": round(separate_s, 1)},
        "separate_against_fleet": round(separate_s / fleet_s, 3),
        "equal_curves": equal,
        "conditions": read_conditions(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name:
        record = measure(arguments.subjects, arguments.steps, arguments.parallel, Path(name))
    text = json.dumps(record, indent=1)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
