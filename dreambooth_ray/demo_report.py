"""A subject the model has never seen, learnt in minutes, and the proof as one image."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from dreambooth_ray import pipeline
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.evaluation import toyscore
from dreambooth_ray.evaluation.toyscore import LabelledImages
from dreambooth_ray.preparation import Display, PreparedRun, prepare_run
from dreambooth_ray.runs import open_run
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage import paths
from dreambooth_ray.toyworld.attributes import BACKGROUND_NAMES, CLASSES
from dreambooth_ray.toyworld.evaluator import Evaluator, load_evaluator, predict_attributes
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.toyworld.world import PHOTO_BACKGROUNDS

SUBJECT_SEED = 7
CLASS_NOUN = "robot"
NUM_PHOTOGRAPHS = 5
NUM_EACH = 6
NUM_EACH_CLASS = 3
SEED = 1000


@dataclass(frozen=True)
class DemoRun:
    """A finished run of the demo, the folder of its bundle, and the seconds it took."""

    prepared: PreparedRun
    bundle: Path
    seconds: float


@dataclass(frozen=True)
class DemoModelImages:
    """What one model generates for the demo."""

    subject: list[Image.Image]
    other_classes: LabelledImages


def generate_model_images(model: Engine, prompt: str) -> DemoModelImages:
    """Images of the subject, and of every other class."""
    other_class_nouns = [c for c in CLASSES if c != CLASS_NOUN]
    return DemoModelImages(
        subject=toyscore.generate_subject_images(model, prompt, NUM_EACH, SEED),
        other_classes=toyscore.generate_labelled_classes(
            model, other_class_nouns, NUM_EACH_CLASS, SEED + 200
        ),
    )


def generate_new_contexts(model: Engine, prompt: str) -> LabelledImages:
    """Images of the subject in places where it was never photographed."""
    new_backgrounds = [b for b in BACKGROUND_NAMES if b not in PHOTO_BACKGROUNDS]
    return toyscore.generate_context_images(model, prompt, new_backgrounds, NUM_EACH, SEED + 100)


def train_demo(config: Config, output_config: Config, out: Path, display: Display) -> list[DemoRun]:
    """Render photographs and train on them twice; Ray must be there. Links {out}/bundle.

    config: with class images; output_config: with output preservation instead
    """
    write_photographs(out / "photos", SUBJECT_SEED, CLASS_NOUN, NUM_PHOTOGRAPHS, size_px=256)
    demo_runs = []
    for run_config in (config, output_config):
        started_s = time.monotonic()
        prepared_run = prepare_run(run_config, display)
        run_store = open_run(prepared_run.config)
        pipeline.train(prepared_run, run_store, display)
        bundle_folder = run_store.local_path(paths.BUNDLE)
        demo_runs.append(DemoRun(prepared_run, bundle_folder, time.monotonic() - started_s))
    _link_bundle(out, demo_runs[0].bundle)
    return demo_runs


def compare_models(runs: list[DemoRun], out: Path, display: Display) -> dict[str, object]:
    """Sample from all models, write the contact sheet, return the report without its time.

    runs: of `train_demo`
    """
    display.say("drawing with the model before and after")
    torch.set_num_threads(count_threads())
    prepared_run = runs[0].prepared
    prompt = prepared_run.config.instance_prompt
    photo_images = [read_photograph(path) for path in find_photographs(out / "photos")]
    model_folders = {
        "before": prepared_run.directory,
        "after": runs[0].bundle,
        "output": runs[1].bundle,
    }
    engines = {name: Engine(folder) for name, folder in model_folders.items()}
    images_by_model = {
        name: generate_model_images(model, prompt) for name, model in engines.items()
    }
    context_images = generate_new_contexts(engines["after"], prompt)
    make_contact_sheet(photo_images, images_by_model, context_images).save(
        out / "contact_sheet.png"
    )
    runs_by_name = dict(zip(("after", "output"), runs, strict=True))
    return {
        **score_demo_models(photo_images, images_by_model, context_images, load_evaluator()),
        "steps": {name: run.prepared.config.train.steps for name, run in runs_by_name.items()},
        "seconds": {name: round(run.seconds, 1) for name, run in runs_by_name.items()},
    }


def count_threads() -> int:
    """What the environment says, as in pods, whose share of the cores it is; else all cores.

    Threads of one core's share wait for each other at every operation.
    """
    return int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or os.cpu_count() or 1)


def write_report_json(report: dict[str, object], out: Path) -> None:
    """Write {out}/report.json."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def score_demo_models(
    photos: list[Image.Image],
    images: Mapping[str, DemoModelImages],
    contexts: LabelledImages,
    network: Evaluator,
) -> dict[str, object]:
    """Scores of each model by the evaluator: cosines from -1 to 1, accuracies from 0 to 1."""

    def score_each_model(score: Callable[[DemoModelImages], float]) -> dict[str, float]:
        return {name: round(score(own), 4) for name, own in images.items()}

    def score_other_classes(images: DemoModelImages) -> float:
        other_class_images = images.other_classes
        return predict_attributes(network, other_class_images.images).accuracy(
            "class", other_class_images.labels
        )

    def measure_subject_class_accuracy(images: DemoModelImages) -> float:
        return predict_attributes(network, images.subject).accuracy(
            "class", [CLASS_NOUN] * NUM_EACH
        )

    def measure_fidelity(images: list[Image.Image]) -> float:
        return toyscore.subject_fidelity(images, photos, network)

    context_accuracy = predict_attributes(network, contexts.images).accuracy(
        "background", contexts.labels
    )
    return {
        "subject_fidelity": score_each_model(lambda images: measure_fidelity(images.subject)),
        "subject_class": score_each_model(measure_subject_class_accuracy),
        "context_accuracy": round(context_accuracy, 4),
        "context_fidelity": round(measure_fidelity(contexts.images), 4),
        "other_classes": score_each_model(score_other_classes),
    }


def make_contact_sheet(
    photos: list[Image.Image], images: Mapping[str, DemoModelImages], contexts: LabelledImages
) -> Image.Image:
    """All rows of the demo under their titles, 2x enlarged."""
    column_indices = range(NUM_EACH)
    other_class_images = {
        name: [own.other_classes.images[k * NUM_EACH_CLASS] for k in column_indices]
        for name, own in images.items()
    }
    titled_rows = [
        ("the photographs", photos),
        (f'"a sks {CLASS_NOUN}" before training', images["before"].subject),
        (f'"a sks {CLASS_NOUN}" after training', images["after"].subject),
        (
            '"a sks robot on the beach", and other places it was never photographed in',
            [contexts.images[k * NUM_EACH] for k in column_indices],
        ),
        ("other classes before", other_class_images["before"]),
        ("other classes after", other_class_images["after"]),
        (
            f'"a sks {CLASS_NOUN}" by adapters, without class images (output preservation)',
            images["output"].subject,
        ),
        ("other classes after that", other_class_images["output"]),
    ]
    return _arrange_rows(titled_rows, NUM_EACH, tile_px=128)


def _arrange_rows(
    rows: list[tuple[str, list[Image.Image]]], columns: int, tile_px: int
) -> Image.Image:
    gap_px, title_px = 6, 22
    width = columns * (tile_px + gap_px) + gap_px
    height = len(rows) * (tile_px + gap_px + title_px) + gap_px
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row_index, (row_title, images) in enumerate(rows):
        row_top_px = gap_px + row_index * (tile_px + gap_px + title_px)
        draw.text((gap_px, row_top_px), row_title, fill=(30, 30, 30), font=font)
        for column_index, image in enumerate(images):
            tile = image.resize((tile_px, tile_px), Image.Resampling.LANCZOS)
            sheet.paste(
                tile, (gap_px + column_index * (tile_px + gap_px), row_top_px + title_px - 2)
            )
    return sheet


def _link_bundle(out: Path, bundle: Path) -> None:
    """{out}/bundle leads to the run's bundle."""
    link_path = out / paths.BUNDLE
    link_path.unlink(missing_ok=True)
    link_path.symlink_to(bundle.resolve(), target_is_directory=True)
