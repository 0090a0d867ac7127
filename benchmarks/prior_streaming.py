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
from dreambooth_ray.toyworld.world import photographs, random_subject

RECIPE = "toy-robot.yaml"


def time_command(verb: list[str], storage: Path, overrides: list[str]) -> tuple[float, str]:
    """Seconds that `dreambooth VERB` took, and the last line of its output."""
    program = str(Path(sys.executable).with_name("dreambooth"))
    words = [program, *verb, RECIPE, *overrides, f"storage.uri={storage}"]
    start_s = time.perf_counter()
    result = subprocess.run(
        words, check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return time.perf_counter() - start_s, result.stdout.strip().splitlines()[-1]


def measure(images: int, steps: int, folder: Path) -> dict[str, Any]:
    """All four, in seconds, and what they say of each other."""
    (folder / "photos").mkdir()
    for number, image in enumerate(photographs(random_subject(7), 5, 7)):
        image.save(folder / "photos" / f"{number}.png")
    overrides = [
        f"subject.photos={folder / 'photos'}", f"prior.count={images}", f"train.steps={steps}",
        "prior.actors=1", "cluster.workers=1", "train.batch_size=1", "sample.every=0",
        "checkpoint.every=200", "run_id=run",
    ]  # fmt: skip
    train, prior_storage = ["train"], folder / "drawn"
    seconds, runs = {}, {}
    seconds["priors"], _ = time_command(["priors", "make"], prior_storage, overrides)
    seconds["training"], runs["training"] = time_command(train, prior_storage, overrides)
    seconds["streamed"], runs["streamed"] = time_command(train, folder / "streamed", overrides)
    in_turn_overrides = [*overrides, "prior.stream=false"]
    seconds["in_turn"], runs["in_turn"] = time_command(train, folder / "in_turn", in_turn_overrides)
    curves = {(Path(run) / "metrics.jsonl").read_bytes() for run in runs.values()}
    longer = max(seconds["priors"], seconds["training"])
    return {
        "images": images,
        "steps": steps,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "streamed_against_the_longer": round(seconds["streamed"] / longer, 3),
        "in_turn_against_streamed": round(seconds["in_turn"] / seconds["streamed"], 3),
        "equal_curves": len(curves) == 1,
        "conditions": read_conditions(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name:
        text = json.dumps(measure(arguments.images, arguments.steps, Path(name)), indent=1)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
