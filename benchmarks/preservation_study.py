"""Ways to keep what the model knows, compared at equal likeness and at equal seconds.

    python -m benchmarks.preservation_study --work out/study
        --json benchmarks/results/preservation.json --plot docs/how-to/preservation.png

(in one line). Trainings as in `benchmarks.study`: random toy subjects, one process, one thread, no
Ray. Each is scored along its way, so that kinds can be compared where they make the subject equally
well. Seconds are of the processor, not of a clock, so a load beside does not count. A cell that is
done is a line of WORK/preservation.jsonl and is never done again.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import read_conditions
from benchmarks.preservation_table import format_page, plot_fronts, summarize_cells
from benchmarks.study import (
    BATCH,
    NUM_CLASS_IMAGES,
    POINTS,
    STEPS,
    StudyCell,
    generate_class_images,
    load_cell_config,
    run_study,
)
from benchmarks.study_judge import StudyScorer, load_brief_protocol
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.model_directory import model_directory

# By name: whether class images are made, and what is set.
KINDS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "none": (False, ()),
    "images": (True, ()),
    "output": (False, ("prior.kind=output",)),
    "both": (True, ("prior.kind=both",)),
}
FILE = "preservation.jsonl"


class JudgedScorer:
    """Scores a model by the images that no choice of a checkpoint sees, with the seconds so far."""

    def __init__(self, config: Config) -> None:
        self._scorer = StudyScorer(config)
        self._start_s, self._scoring_s = time.process_time(), 0.0

    def __call__(self, parts: Components) -> dict[str, dict[str, float]]:
        """Totals, and the processor's seconds of the training that led there."""
        start_s = time.process_time()
        trained_s = start_s - self._start_s - self._scoring_s
        totals = self._scorer.score(parts, load_brief_protocol("judged"))
        self._scoring_s += time.process_time() - start_s
        return {"judged": totals, "seconds": {"trained": round(trained_s, 2)}}


def make_cells(subjects: range, methods: tuple[str, ...]) -> list[StudyCell]:
    """All of them, method by method and subject by subject."""
    return [
        StudyCell(subject, method, has_images, overrides)
        for method in methods
        for subject in subjects
        for has_images, overrides in KINDS.values()
    ]


def name_kind(line: dict[str, Any]) -> tuple[str, str]:
    """Method and kind of a cell's line."""
    method, *words = line["cell"].split(", ")
    kinds = {word.removeprefix("prior.kind=") for word in words if "prior.kind=" in word}
    if kinds:
        return method, kinds.pop()
    return method, "images" if "with class images" in words else "none"


def measure_class_images(work: Path) -> float:
    """Processor seconds of NUM_CLASS_IMAGES class images, made anew."""
    cell = StudyCell(0, "lora", True, (f"storage.uri={work / 'timed'}",))
    start_s = time.process_time()
    generate_class_images(load_cell_config(cell, work), model_directory("toyworld"))
    return time.process_time() - start_s


def main() -> None:
    """Run what is missing, then write record, table and plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subjects", type=int, default=10, help="0 writes what is there")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--json", type=Path, help="the record; its table goes beside it as .md")
    parser.add_argument("--plot", type=Path, help="an image of likeness against drift")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cells = make_cells(range(arguments.subjects), tuple(arguments.methods))
    for cell in cells:
        if cell.prior:
            # Before any training, so that its seconds are its own.
            generate_class_images(
                load_cell_config(cell, arguments.work), model_directory("toyworld")
            )
    lines = run_study(cells, arguments.work, FILE, lambda _: POINTS, JudgedScorer)
    if arguments.json is None:
        return
    class_images_s = measure_class_images(arguments.work)
    results = summarize_cells([(*name_kind(line), line) for line in lines], class_images_s)
    setting = {
        "steps": STEPS, "points": POINTS, "photographs_a_step": BATCH,
        "class_images": NUM_CLASS_IMAGES, "class_images_s": round(class_images_s, 1),
    }  # fmt: skip
    record = {**results, "setting": setting, "conditions": read_conditions(), "cells": lines}
    arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    arguments.json.with_suffix(".md").write_text(format_page(results, setting))
    if arguments.plot:
        plot_fronts(results, arguments.plot)


if __name__ == "__main__":
    main()
