"""Ways to keep what the model knows, compared at equal likeness and at equal seconds.

    python -m benchmarks.preservation_study --work out/study
        --json benchmarks/results/preservation.json --plot docs/how-to/preservation.png
    python -m benchmarks.preservation_study --work out/study --model toyworld-flow --methods lora
        --subjects 5 --json benchmarks/results/preservation_flow.json

(each in one line). Trainings as in `benchmarks.study`: random toy subjects, one process, one
thread, no Ray. Each is scored along its way, so that kinds can be compared where they make the
subject equally well. Seconds are of the processor, not of a clock, so a load beside does not count.
A cell that is done is a line in WORK and is never done again.
"""

import argparse
import json
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import read_conditions
from benchmarks.preservation_table import format_page, plot_fronts, summarize_by_method_and_kind
from benchmarks.study import (
    NUM_CLASS_IMAGES,
    POINTS,
    TOY,
    StudyCell,
    generate_class_images,
    load_cell_config,
    run_study,
)
from benchmarks.study_scorer import StudyScorer, load_brief_protocol
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


@dataclass(frozen=True)
class ToySetting:
    """How a model is trained and scored.

    file: of the cells; protocol: of `study_judge`; overrides: of all its cells
    """

    file: str
    points: tuple[int, ...]
    protocol: str
    overrides: tuple[str, ...] = ()


# A row of the toy that flows takes five times as long, so it is scored at fewer points and by fewer
# images. Its attention is small and its text encoder is not trained: the feed-forward takes part.
SETTINGS = {
    TOY: ToySetting("preservation.jsonl", POINTS, "judged"),
    "toyworld-flow": ToySetting(
        "preservation_flow.jsonl", (100, 200, 300), "judged briefly",
        (
            "prior.solver=dpmpp_2m", "prior.num_inference_steps=10", "train.steps=300",
            "train.batch_size=2", "train.lora.target_modules=[to_q,to_k,to_v,to_out.0,w1,w2,w3]",
            "train.lr=1e-3",
        ),
    ),
}  # fmt: skip


class JudgedScorer(StudyScorer):
    """Scores a model by the images that no choice of a checkpoint sees, with the seconds so far."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._protocol = load_brief_protocol(SETTINGS[config.model.uri].protocol)
        self._start_s, self._scoring_s = time.process_time(), 0.0

    def __call__(self, parts: Components) -> dict[str, dict[str, float]]:
        """Totals, and the processor's seconds of the training that led there."""
        start_s = time.process_time()
        trained_s = start_s - self._start_s - self._scoring_s
        score_by_metric = self.score(parts, self._protocol)
        self._scoring_s += time.process_time() - start_s
        return {"judged": score_by_metric, "seconds": {"trained": round(trained_s, 2)}}


def make_cells(
    subjects: range, methods: Sequence[str], kinds: Sequence[str] = tuple(KINDS), model: str = TOY
) -> list[StudyCell]:
    """All of them, method by method and subject by subject."""
    study_cells = []
    for method, subject, prior_kind in product(methods, subjects, kinds):
        has_class_images, overrides = KINDS[prior_kind]
        overrides = (*SETTINGS[model].overrides, *overrides)
        study_cells.append(StudyCell(subject, method, has_class_images, overrides, model))
    return study_cells


def parse_training_method_and_kind(line: dict[str, Any]) -> tuple[str, str]:
    """Method and kind of a cell's line."""
    method, *cell_name_parts = line["cell"].split(", ")
    prior_kinds = {
        word.removeprefix("prior.kind=") for word in cell_name_parts if "prior.kind=" in word
    }
    if prior_kinds:
        return method, prior_kinds.pop()
    return method, "images" if "with class images" in cell_name_parts else "none"


def time_class_image_generation(work: Path, model: str) -> float:
    """Processor seconds of NUM_CLASS_IMAGES class images, made anew."""
    shutil.rmtree(work / "timed", ignore_errors=True)
    overrides = (*SETTINGS[model].overrides, f"storage.uri={work / 'timed'}")
    study_cell = StudyCell(0, "lora", True, overrides, model)
    start_s = time.process_time()
    generate_class_images(load_cell_config(study_cell, work), model_directory(model))
    return time.process_time() - start_s


def read_class_images_s(record: Path) -> dict[str, float]:
    """Seconds by method, of a record that is there: what is trained no more keeps them."""
    if not record.exists():
        return {}
    seconds_by_method: dict[str, float] = json.loads(record.read_text())["setting"][
        "class_images_s"
    ]
    return seconds_by_method


def main() -> None:
    """Run what is missing, then write record, table and plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subjects", type=int, default=10, help="0 writes what is there")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--model", choices=SETTINGS, default=TOY)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=tuple(KINDS))
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--json", type=Path, help="the record; its table goes beside it as .md")
    parser.add_argument("--plot", type=Path, help="an image of likeness against drift")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model_name, toy_setting = arguments.model, SETTINGS[arguments.model]
    study_cells = make_cells(
        range(arguments.subjects), arguments.methods, arguments.kinds, model_name
    )
    for study_cell in study_cells:
        if study_cell.prior:
            # Before any training, so that its seconds are its own.
            generate_class_images(
                load_cell_config(study_cell, arguments.work), model_directory(model_name)
            )
    cell_records = run_study(
        study_cells, arguments.work, toy_setting.file, lambda _: toy_setting.points, JudgedScorer
    )
    if arguments.json is None:
        return
    class_images_s = read_class_images_s(arguments.json)
    measured_class_images_s = round(time_class_image_generation(arguments.work, model_name), 1)
    class_images_s |= dict.fromkeys(arguments.methods, measured_class_images_s)
    study_results = summarize_by_method_and_kind(
        [(*parse_training_method_and_kind(line), line) for line in cell_records], class_images_s
    )
    (study_cell,) = make_cells(range(1), ["lora"], ["none"], model_name)
    train_config = load_cell_config(study_cell, arguments.work).train
    setting_record = {
        "model": model_name, "steps": train_config.steps, "points": toy_setting.points,
        "photographs_a_step": train_config.batch_size, "class_images": NUM_CLASS_IMAGES,
        "class_images_s": class_images_s, "overrides": toy_setting.overrides,
    }  # fmt: skip
    record = {
        **study_results,
        "setting": setting_record,
        "conditions": read_conditions(),
        "cells": cell_records,
    }
    arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    arguments.json.with_suffix(".md").write_text(format_page(study_results, setting_record))
    if arguments.plot:
        plot_fronts(study_results, arguments.plot)


if __name__ == "__main__":
    main()
