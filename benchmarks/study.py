"""What prior preservation does to a subject and to everything else, over random toy subjects.

    python -m benchmarks.study --work out/study --json benchmarks/results/study.json

Ten subjects, each learnt by all weights and by adapters, with and without class images: the
toy recipes with the paper's weight of the class images, one process, one thread, no Ray. Models are
scored several times on their way, twice each with images of different seeds: `chosen`
are the images that a choice of a checkpoint may see, `judged` those that say how good it was.
A cell that is done is a line of WORK/cells.jsonl and is never done again; cells come subject by
subject, so that what is there at any time is balanced.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from benchmarks.conditions import read_conditions
from benchmarks.study_page import write_study_page
from benchmarks.study_photographs import NUM_SQUARES, SQUARES, ensure_photograph_folder
from benchmarks.study_scorer import PROTOCOLS, StudyScorer, load_brief_protocol
from benchmarks.study_table import summarize_cells
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.class_shapes import list_class_shapes
from dreambooth_ray.data.image_shapes import ImageShape
from dreambooth_ray.data.prior_set import PriorImageRecord, PriorSet, read_chunk_records
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_directory import model_directory, model_hash
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.priors.prior_spec import PriorSpec, missing_chunks
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.world import random_subject
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.strategy import precision_flag

NUM_CLASS_IMAGES = 64
STEPS, POINTS, BATCH = 240, (60, 120, 180, 240), 2
# Subjects scored on their way as well, for the choice of a checkpoint; the rest at the end alone.
FOLLOWED = 4
TOY = "toyworld"
RECIPES = {"full": "toy-robot.yaml", "lora": "toy-robot-lora.yaml"}
# What makes the recipe of the toy that flows one of adapters; its text encoder is not trained.
FLOW_RECIPE = "toy-robot-flow.yaml"
FLOW_LORA = ("train.method=lora", "train.lora.rank=16")


@dataclass(frozen=True)
class StudyCell:
    """One training, or with method "none" the model before it."""

    subject: int
    method: str
    prior: bool
    overrides: tuple[str, ...] = ()
    model: str = TOY
    photographs: str = SQUARES

    @property
    def name(self) -> str:
        """Of the cell, within its subject."""
        if self.method == "none":
            return "before training"
        training_text = f"{self.method}, {'with' if self.prior else 'without'} class images"
        photograph_texts = (
            [] if self.photographs == SQUARES else [f"photographs={self.photographs}"]
        )
        return ", ".join([training_text, *photograph_texts, *self.overrides])


def make_cells(subjects: int) -> list[StudyCell]:
    """All of them, subject by subject."""
    study_cells = []
    for subject in range(subjects):
        study_cells.append(StudyCell(subject, "none", False))
        study_cells += [StudyCell(subject, m, p) for m, p in product(RECIPES, (True, False))]
    return study_cells


def load_cell_config(cell: StudyCell, work: Path) -> Config:
    """The toy recipe of a method, for this subject and within one process."""
    class_noun = random_subject(cell.subject).class_noun
    photos_folder = ensure_photograph_folder(work, cell.subject, cell.photographs)
    recipe_name, method_overrides = RECIPES.get(cell.method, RECIPES["full"]), tuple[str, ...]()
    if cell.model != TOY:
        recipe_name, method_overrides = FLOW_RECIPE, FLOW_LORA if cell.method == "lora" else ()
    config = load_config(
        recipe_name,
        [
            *method_overrides, f"model.uri={cell.model}", f"subject.photos={photos_folder}",
            f"subject.class_noun={class_noun}", f"seed={cell.subject}", f"storage.uri={work}",
            "cluster.workers=1", f"train.batch_size={BATCH}",
            f"train.steps={STEPS}", "prior.weight=1.0",
            f"prior.count={NUM_CLASS_IMAGES if cell.prior else 0}", *cell.overrides,
        ],
    )  # fmt: skip
    return fill_model_defaults(config, find_family(model_directory(cell.model)))


def generate_class_images(
    config: Config, directory: Path, shapes: tuple[ImageShape, ...] = ()
) -> PriorSet:
    """The class's set, generated once for all its subjects. shapes: none are squares"""
    prior_config = config.prior
    prior_spec = PriorSpec(
        model_hash(directory), config.class_prompts, prior_config.sampling_params,
        config.train.side_px, 0, prior_config.batch_size, shapes=shapes,
    )  # fmt: skip
    prior_store = Store(config.storage.uri).sub(paths.prior_set(prior_spec.digest))
    prior_spec_record = {
        "prompts": list(prior_spec.prompts), "chunk_size": prior_spec.chunk_size, "shapes": shapes,
    }  # fmt: skip
    prior_store.create(paths.PRIOR_SPEC, json.dumps(prior_spec_record).encode())
    prior_worker: PriorWorker | None = None
    chunk_records: dict[int, list[PriorImageRecord]] = {}
    while prior_store.exists(f"{paths.prior_chunk_artifact(len(chunk_records))}.json"):
        chunk_records[len(chunk_records)] = read_chunk_records(prior_store, len(chunk_records))
    while chunk_numbers := missing_chunks(prior_spec, prior_config.num_images, chunk_records):
        prior_worker = prior_worker or PriorWorker(
            str(directory), prior_store.uri, prior_spec, gpu=False
        )
        for chunk_number in chunk_numbers:
            chunk_records[chunk_number] = prior_worker.generate(chunk_number)
    return PriorSet(prior_store, prior_config.num_images)


class _ScoringCallback(Callback):
    """Scores the weights at the points, as they are then."""

    def __init__(
        self, scorer: Callable[[Components], Any], parts: Components, points: tuple[int, ...]
    ) -> None:
        self._scorer, self._parts, self._points = scorer, parts, points
        self.scores_by_step: dict[str, Any] = {}
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step not in self._points:
            return
        start_s = time.perf_counter()
        self.scores_by_step[str(trainer.global_step)] = self._scorer(self._parts)
        self.seconds += time.perf_counter() - start_s


def run_cell(
    cell: StudyCell,
    work: Path,
    points: tuple[int, ...] = POINTS,
    make_scorer: Callable[[Config], Callable[[Components], Any]] = StudyScorer,
) -> dict[str, Any]:
    """Train and score; the line of a cell."""
    start_s = time.perf_counter()
    config, directory = load_cell_config(cell, work), model_directory(cell.model)
    components, scorer = load_components(directory), make_scorer(config)
    cell_record = {
        "subject": cell.subject,
        "cell": cell.name,
        "class_noun": config.subject.class_noun,
    }
    if cell.method == "none":
        return {**cell_record, "points": {"0": scorer(components)}}
    apply_train_method(config, components)
    photographs = read_photographs_for_subject_config(config, config.subject)
    prior_set = None
    if config.prior.num_images:
        class_image_shapes = list_class_shapes(config, photographs)
        prior_set = generate_class_images(config, directory, class_image_shapes)
    dataset = TrainingDataset(config, components, [photographs], prior_set, (0, 1))
    module, scoring_callback = (
        DreamBoothModule(config, components),
        _ScoringCallback(scorer, components, points),
    )
    trainer = pl.Trainer(
        max_steps=config.train.steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=config.train.max_grad_norm, use_distributed_sampler=False,
        precision=precision_flag(config),
        callbacks=[scoring_callback],
    )  # fmt: skip
    trainer.fit(module, DataLoader(dataset, batch_size=None))
    total_s = time.perf_counter() - start_s
    if isinstance(scorer, StudyScorer):
        scorer.draw_sheet(work / "sheets" / f"{cell.subject}, {cell.model}, {cell.name}.png")
    networks = components.networks.values()
    return {
        **cell_record,
        "parameters": sum(
            p.numel() for network in networks for p in network.parameters() if p.requires_grad
        ),
        "points": scoring_callback.scores_by_step,
        "seconds": {"scoring": round(scoring_callback.seconds, 1), "all": round(total_s, 1)},
    }


def choose_scored_steps(cell: StudyCell) -> tuple[int, ...]:
    """When a cell of the study is scored."""
    return POINTS if cell.subject < FOLLOWED else POINTS[-1:]


def run_study(
    todo: list[StudyCell],
    work: Path,
    file: str = "cells.jsonl",
    points: Callable[[StudyCell], tuple[int, ...]] = choose_scored_steps,
    make_scorer: Callable[[Config], Callable[[Components], Any]] = StudyScorer,
) -> list[dict[str, Any]]:
    """Every cell's line, those that were there and those that were not; kept in WORK/FILE."""
    work.mkdir(parents=True, exist_ok=True)
    record_file = work / file
    record_text = record_file.read_text() if record_file.exists() else ""
    cell_records = [json.loads(line) for line in record_text.splitlines()]
    finished_cells = {(line["subject"], line["cell"]) for line in cell_records}
    for study_cell in todo:
        if (study_cell.subject, study_cell.name) in finished_cells:
            continue
        cell_record = run_cell(study_cell, work, points(study_cell), make_scorer)
        with record_file.open("a") as record_stream:
            record_stream.write(json.dumps(cell_record) + "\n")
        print(study_cell.subject, study_cell.name, cell_record.get("seconds"), flush=True)
        cell_records.append(cell_record)
    return cell_records


def write_study_record(lines: list[dict[str, Any]], path: Path) -> None:
    """The record, and beside it the page."""
    study_results = summarize_cells(lines)
    study_setting = {
        "steps": STEPS, "points": POINTS, "subjects_scored_at_all_points": FOLLOWED,
        "photographs_a_step": BATCH, "prior_weight": 1.0,
        "class_images": NUM_CLASS_IMAGES, "photographs": NUM_SQUARES,
        "protocols": {
            name: load_brief_protocol(name).model_dump(mode="json") for name in PROTOCOLS
        },
    }  # fmt: skip
    record = {
        **study_results,
        "setting": study_setting,
        "conditions": read_conditions(),
        "cells": lines,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    write_study_page(path.parent)


def main() -> None:
    """Run what is missing, then write record and table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subjects", type=int, default=10, help="0 writes what is there")
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--json", type=Path, help="the record; a table goes beside it as .md")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cell_records = run_study(make_cells(arguments.subjects), arguments.work)
    if arguments.json:
        write_study_record(cell_records, arguments.json)


if __name__ == "__main__":
    main()
