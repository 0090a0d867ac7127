"""What masks, buckets, adapters and rounded weights do to a subject, beside the usual way.

    python -m benchmarks.options_study --work out/study --json benchmarks/results/options.json

Trainings as in `benchmarks.study`, fewer and shorter. A section holds what is compared: the same
subjects, photographs and seeds, one setting changed. Models are scored by the images that no choice
of a checkpoint sees, and their likeness by other photographs than those they were trained on: the
usual square ones in four places. A cell that is done is a line of WORK/options.jsonl and is never
done again; `study.md` beside the record is written anew.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.conditions import read_conditions
from benchmarks.study import (
    BATCH,
    NUM_CLASS_IMAGES,
    StudyCell,
    run_study,
)
from benchmarks.study_page import write_study_page
from benchmarks.study_photographs import (
    ASPECTS,
    ODD_PLACE,
    ONE_PLACE,
    SQUARES,
    ensure_photograph_folder,
    measure_cut_share,
)
from benchmarks.study_scorer import Scores, StudyScorer, load_brief_protocol
from benchmarks.training_options_table import summarize_section
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.masks import read_mask
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.evaluation.encoders import parse_attributes
from dreambooth_ray.evaluation.protocol import EvaluationPrompt
from dreambooth_ray.models.components import Components
from dreambooth_ray.toyworld.evaluator import Evaluator, predict_attributes

STEPS, POINTS, SUBJECTS = 160, (80, 160), (0, 1, 2)
FILE = "options.jsonl"


@dataclass(frozen=True)
class StudySection:
    """What is compared.

    photographs: of `study_photographs`; rows: overrides by name, the usual way first
    """

    photographs: str
    rows: dict[str, tuple[str, ...]]


# Of about as many weights each; what they have is in the record.
_LOKR = ("train.lora.kind=lokr", "train.lora.lokr_factor=2", "train.lora.rank=30")
_NO_CLASS_IMAGES = "prior.count=0"
_KEPT_BACKGROUND = ("train.mask_background=0.5", "train.mask_background_target=output")
SECTIONS = {
    "masks": StudySection(
        ONE_PLACE,
        {
            "no masks": (),
            "background 0.1": ("train.mask_background=0.1",),
            "background kept": _KEPT_BACKGROUND,
        },
    ),
    "masks alone": StudySection(
        ONE_PLACE,
        {
            "no masks": (_NO_CLASS_IMAGES,),
            "background 0.1": (_NO_CLASS_IMAGES, "train.mask_background=0.1"),
            "background kept": (_NO_CLASS_IMAGES, *_KEPT_BACKGROUND),
        },
    ),
    "buckets": StudySection(
        ASPECTS,
        {
            "centre crops": (),
            "buckets": ("train.buckets=true", "train.bucket_step_px=16"),
            "smart crops": ("train.crop=smart",),
        },
    ),
    "adapters": StudySection(
        SQUARES,
        {
            "LoRA": (),
            "DoRA": ("train.lora.dora=true",),
            "rsLoRA": ("train.lora.rslora=true",),
            "LoHa": ("train.lora.kind=loha", "train.lora.rank=8"),
            "LoKr": _LOKR,
        },
    ),
    "weights": StudySection(
        SQUARES,
        {
            "float32": ("train.precision=bf16-mixed",),
            "bfloat16": ("train.precision=bf16-mixed", "train.weight_dtype=bfloat16"),
        },
    ),
}


class OptionsStudyScorer(StudyScorer):
    """Scores by the judged images: the study's totals, and which places are drawn."""

    def __init__(self, config: Config) -> None:
        work_folder, subject_seed = Path(config.storage.uri), config.seed
        super().__init__(config, ensure_photograph_folder(work_folder, subject_seed, SQUARES))
        self._cut = measure_subject_cut(config)

    def __call__(self, parts: Components) -> Scores:
        """Totals, shares of places, and how much of the subject training does not see."""
        score_by_metric = self.score(parts, load_brief_protocol("judged"))
        background_shares = score_backgrounds(self.images.items(), self.evaluator)
        return {"judged": {**score_by_metric, **background_shares, "cut": self._cut}}


def measure_subject_cut(config: Config) -> float:
    """Mean share of the subject that is cut off, over photographs with a mask; 0 without any."""
    cut_shares = []
    for photograph in read_photographs_for_subject_config(config, config.subject):
        (cropped_photograph,) = photograph.at_all_resolutions
        mask = read_mask(
            photograph.path, cropped_photograph.original_px or cropped_photograph.image.size
        )
        if mask is not None:
            cut_shares.append(measure_cut_share(mask, cropped_photograph.crop_box))
    return round(statistics.fmean(cut_shares), 4) if cut_shares else 0.0


def score_backgrounds(
    images: Iterable[tuple[EvaluationPrompt, Image.Image]], network: Evaluator
) -> dict[str, float]:
    """Which places images show, by the evaluator: shares of images, 0 to 1.

    places: of the subject's prompts that name one, those drawn there; leak_named: those drawn in
    ODD_PLACE instead; leak_open: of its prompts that name none, those drawn there; leak_class: of
    the bare class
    """
    prompt_image_pairs = list(images)
    drawn_backgrounds = predict_attributes(
        network, [image for _, image in prompt_image_pairs]
    ).attributes["background"]
    prompted_backgrounds = [
        parse_attributes(prompt.plain_prompt).get("background") for prompt, _ in prompt_image_pairs
    ]
    prompt_kinds = [prompt.kind for prompt, _ in prompt_image_pairs]
    background_comparisons = list(
        zip(prompt_kinds, prompted_backgrounds, drawn_backgrounds, strict=True)
    )
    background_pairs = [
        (name, place) for kind, name, place in background_comparisons if kind == "subject" and name
    ]
    matches_by_score = {
        "places": [name == place for name, place in background_pairs],
        "leak_named": [place == ODD_PLACE for name, place in background_pairs if name != ODD_PLACE],
        "leak_open": [
            place == ODD_PLACE
            for kind, name, place in background_comparisons
            if kind == "subject" and not name
        ],
        "leak_class": [
            place == ODD_PLACE for kind, _, place in background_comparisons if kind == "class"
        ],
    }
    return {name: round(statistics.fmean(marks), 4) for name, marks in matches_by_score.items()}


def make_cells(
    names: Sequence[str], subjects: Sequence[int], rows: Sequence[str] = ()
) -> dict[tuple[str, str], list[StudyCell]]:
    """By section and row, a cell a subject. rows: all where none is named"""
    steps_override = (f"train.steps={STEPS}",)
    return {
        (name, row): [
            StudyCell(
                subject,
                "lora",
                _NO_CLASS_IMAGES not in overrides,
                (*steps_override, *overrides),
                photographs=section.photographs,
            )
            for subject in subjects
        ]
        for name, section in ((name, SECTIONS[name]) for name in names)
        for row, overrides in section.rows.items()
        if not rows or row in rows
    }


def make_record(
    cells: dict[tuple[str, str], list[StudyCell]], lines: list[dict[str, Any]]
) -> dict[str, Any]:
    """Every section with the subjects that all its rows have, and every cell."""
    record_by_cell = {(line["subject"], line["cell"]): line for line in lines}
    records_by_section: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for (section_name, row), row_study_cells in cells.items():
        finished_records = {
            cell.subject: record_by_cell[cell.subject, cell.name]
            for cell in row_study_cells
            if (cell.subject, cell.name) in record_by_cell
        }
        if finished_records:
            records_by_section.setdefault(section_name, {})[row] = finished_records
    return {
        "sections": {name: summarize_section(rows) for name, rows in records_by_section.items()},
        "setting": {
            "steps": STEPS, "points": POINTS, "photographs_a_step": BATCH,
            "class_images": NUM_CLASS_IMAGES, "odd_place": ODD_PLACE,
        },
        "conditions": read_conditions(),
        "cells": lines,
    }  # fmt: skip


def main() -> None:
    """Run what is missing, then write the record and the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--json", type=Path, help="the record; the study's page beside it grows")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=tuple(SECTIONS))
    parser.add_argument("--rows", nargs="*", default=())
    parser.add_argument("--subjects", type=int, nargs="*", default=SUBJECTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    chosen_cells = make_cells(arguments.sections, arguments.subjects, arguments.rows)
    subjects = list(arguments.subjects)
    # Subject by subject, so that what is there at any time is balanced.
    cells_to_run = sorted(
        (cell for cells in chosen_cells.values() for cell in cells),
        key=lambda cell: subjects.index(cell.subject),
    )
    cell_records = run_study(
        cells_to_run, arguments.work, FILE, lambda _: POINTS, OptionsStudyScorer
    )
    if arguments.json:
        study_cells = make_cells(
            tuple(SECTIONS), sorted({line["subject"] for line in cell_records})
        )
        arguments.json.write_text(
            json.dumps(make_record(study_cells, cell_records), indent=1) + "\n"
        )
        write_study_page(arguments.json.parent)


if __name__ == "__main__":
    main()
