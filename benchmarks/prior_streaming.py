"""The gain of training while class images are generated, in whole commands.

    python -m benchmarks.prior_streaming --json benchmarks/results/streaming.json

One actor and one training worker, a core each. Four commands, each with its own start of Ray:
generating alone, training on a complete set, both at once, and one after the other.
The loss curves of the three trainings have to be equal byte for byte.
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

from benchmarks.conditions import read_conditions
from dreambooth_ray.toyworld.world import random_subject, render_photographs

RECIPE = "toy-robot.yaml"


def time_command(verb: list[str], storage: Path, overrides: list[str]) -> tuple[float, str]:
    """Seconds that `dreambooth VERB` took, and the last line of its output."""
    dreambooth_program = str(Path(sys.executable).with_name("dreambooth"))
    command = [dreambooth_program, *verb, RECIPE, *overrides, f"storage.uri={storage}"]
    start_s = time.perf_counter()
    completed_process = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return time.perf_counter() - start_s, completed_process.stdout.strip().splitlines()[-1]


def measure(images: int, steps: int, folder: Path) -> dict[str, Any]:
    """All four, in seconds, and what they say of each other."""
    (folder / "photos").mkdir()
    for image_index, image in enumerate(render_photographs(random_subject(7), 5, 7)):
        image.save(folder / "photos" / f"{image_index}.png")
    overrides = [
        f"subject.photos={folder / 'photos'}", f"prior.count={images}", f"train.steps={steps}",
        "prior.actors=1", "cluster.workers=1", "train.batch_size=1", "sample.every=0",
        "checkpoint.every=200", "run_id=run",
    ]  # fmt: skip
    train_verb, prior_storage = ["train"], folder / "drawn"
    seconds_by_command, run_folders = {}, {}
    seconds_by_command["priors"], _ = time_command(["priors", "make"], prior_storage, overrides)
    seconds_by_command["training"], run_folders["training"] = time_command(
        train_verb, prior_storage, overrides
    )
    seconds_by_command["streamed"], run_folders["streamed"] = time_command(
        train_verb, folder / "streamed", overrides
    )
    in_turn_overrides = [*overrides, "prior.stream=false"]
    seconds_by_command["in_turn"], run_folders["in_turn"] = time_command(
        train_verb, folder / "in_turn", in_turn_overrides
    )
    metrics_logs = {(Path(run) / "metrics.jsonl").read_bytes() for run in run_folders.values()}
    longer_s = max(seconds_by_command["priors"], seconds_by_command["training"])
    return {
        "images": images,
        "steps": steps,
        "seconds": {name: round(value, 1) for name, value in seconds_by_command.items()},
        "streamed_against_the_longer": round(seconds_by_command["streamed"] / longer_s, 3),
        "in_turn_against_streamed": round(
            seconds_by_command["in_turn"] / seconds_by_command["streamed"], 3
        ),
        "equal_curves": len(metrics_logs) == 1,
        "conditions": read_conditions(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        record_text = json.dumps(
            measure(arguments.images, arguments.steps, Path(temp_folder)), indent=1
        )
    print(record_text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(record_text + "\n")


if __name__ == "__main__":
    main()
