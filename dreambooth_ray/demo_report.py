"""A subject the model has never seen, learnt in minutes, and the proof as one image."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from dreambooth_ray import pipeline
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.evaluation import toyscore
from dreambooth_ray.evaluation.toyscore import GeneratedSet
from dreambooth_ray.preparation import Display, Prepared, prepare
from dreambooth_ray.runs import open_run
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage import paths
from dreambooth_ray.toyworld.attributes import BACKGROUND_NAMES, CLASSES
from dreambooth_ray.toyworld.evaluator import Evaluator, load_evaluator, read_images
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.toyworld.world import PHOTO_BACKGROUNDS

SUBJECT_SEED = 7
CLASS_NOUN = "robot"
NUM_PHOTOGRAPHS = 5
NUM_EACH = 6
SEED = 1000


@dataclass(frozen=True)
class Look:
    """What one model draws for the questions of the demo."""

    subject: list[Image.Image]
    others: GeneratedSet


def look(model: Engine, prompt: str) -> Look:
    """Draw the subject, and every other class."""
    others = [c for c in CLASSES if c != CLASS_NOUN]
    return Look(
        subject=toyscore.draw_subject(model, prompt, NUM_EACH, SEED),
        others=toyscore.draw_classes(model, others, NUM_EACH, SEED + 200),
    )


def look_around(model: Engine, prompt: str) -> GeneratedSet:
    """Draw the subject in the places where it was never photographed."""
    new_places = [b for b in BACKGROUND_NAMES if b not in PHOTO_BACKGROUNDS]
    return toyscore.draw_contexts(model, prompt, new_places, NUM_EACH, SEED + 100)


def learn(config: Config, out: Path, display: Display) -> Prepared:
    """Draw photographs, train on them, link {out}/bundle; Ray must be there."""
    write_photographs(out / "photos", SUBJECT_SEED, CLASS_NOUN, NUM_PHOTOGRAPHS, size_px=256)
    prepared = prepare(config, display)
    run = open_run(config)
    pipeline.train(prepared, run, display)
    _link_bundle(out, run.local_path(paths.BUNDLE))
    return prepared


def show(prepared: Prepared, out: Path, display: Display) -> dict[str, object]:
    """Draw with both models, write the contact sheet, return the report without its time."""
    display.say("drawing with the model before and after")
    torch.set_num_threads(os.cpu_count() or 1)
    prompt = prepared.config.instance_prompt
    photos = [read_photograph(path) for path in find_photographs(out / "photos")]
    tuned = Engine(out / paths.BUNDLE)
    before, after = look(Engine(prepared.directory), prompt), look(tuned, prompt)
    contexts = look_around(tuned, prompt)
    contact_sheet(photos, before, after, contexts).save(out / "contact_sheet.png")
    return make_report(photos, before, after, contexts, load_evaluator())


def write_report(report: dict[str, object], out: Path) -> None:
    """Write {out}/report.json."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def make_report(
    photos: list[Image.Image], before: Look, after: Look, contexts: GeneratedSet, network: Evaluator
) -> dict[str, object]:
    """Scores by the evaluator: cosines from -1 to 1, accuracies from 0 to 1."""

    def both(score: Callable[[Look], float]) -> dict[str, float]:
        return {"before": round(score(before), 4), "after": round(score(after), 4)}

    def others(seen: Look) -> float:
        return read_images(network, seen.others.images).accuracy("class", seen.others.wanted)

    def own_class(seen: Look) -> float:
        return read_images(network, seen.subject).accuracy("class", [CLASS_NOUN] * NUM_EACH)

    def likeness(images: list[Image.Image]) -> float:
        return toyscore.subject_fidelity(images, photos, network)

    places = read_images(network, contexts.images).accuracy("background", contexts.wanted)
    return {
        "subject_fidelity": both(lambda seen: likeness(seen.subject)),
        "subject_class": both(own_class),
        "context_accuracy": round(places, 4),
        "context_fidelity": round(likeness(contexts.images), 4),
        "other_classes": both(others),
    }


def contact_sheet(
    photos: list[Image.Image], before: Look, after: Look, contexts: GeneratedSet
) -> Image.Image:
    """All rows of the demo under their titles, 2x enlarged."""
    one_each = [k * NUM_EACH for k in range(NUM_EACH)]
    places = [contexts.images[i] for i in one_each]
    rows = [
        ("the photographs", photos),
        (f'"a sks {CLASS_NOUN}" before training', before.subject),
        (f'"a sks {CLASS_NOUN}" after training', after.subject),
        ('"a sks robot on the beach", and other places it was never photographed in', places),
        ("other classes before", [before.others.images[i] for i in one_each]),
        ("other classes after", [after.others.images[i] for i in one_each]),
    ]
    return _sheet(rows, NUM_EACH, tile_px=128)


def _sheet(rows: list[tuple[str, list[Image.Image]]], columns: int, tile_px: int) -> Image.Image:
    gap, title = 6, 22
    width = columns * (tile_px + gap) + gap
    sheet = Image.new("RGB", (width, len(rows) * (tile_px + gap + title) + gap), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for r, (label, images) in enumerate(rows):
        top = gap + r * (tile_px + gap + title)
        pen.text((gap, top), label, fill=(30, 30, 30), font=font)
        for c, image in enumerate(images):
            tile = image.resize((tile_px, tile_px), Image.Resampling.LANCZOS)
            sheet.paste(tile, (gap + c * (tile_px + gap), top + title - 2))
    return sheet


def _link_bundle(out: Path, bundle: Path) -> None:
    """{out}/bundle leads to the run's bundle."""
    link = out / paths.BUNDLE
    link.unlink(missing_ok=True)
    link.symlink_to(bundle.resolve(), target_is_directory=True)
