"""A subject the model has never seen, learnt in minutes, and the proof as one picture."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from dreambooth_ray import pipeline as flow
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.diffusion.components import load_pipeline
from dreambooth_ray.evaluation import toyscore
from dreambooth_ray.evaluation.toyscore import Drawn
from dreambooth_ray.storage import layout
from dreambooth_ray.toyworld.attributes import BACKGROUND_NAMES, CLASSES
from dreambooth_ray.toyworld.evaluator import Evaluator, load_evaluator, read_pictures
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
    contexts: Drawn
    others: Drawn


def demo_config(out: Path) -> Config:
    """The toy robot recipe, kept in `out`."""
    return load_config(
        "toy-robot.yaml", [f"subject.photos={out / 'photos'}", f"storage.uri={out / 'storage'}"]
    )


def look(model: StableDiffusionPipeline, prompt: str) -> Look:
    """Draw the subject, the subject in new places, and every other class."""
    new_places = [b for b in BACKGROUND_NAMES if b not in PHOTO_BACKGROUNDS]
    others = [c for c in CLASSES if c != CLASS_NOUN]
    return Look(
        subject=toyscore.draw_subject(model, prompt, NUM_EACH, SEED),
        contexts=toyscore.draw_contexts(model, prompt, new_places, NUM_EACH, SEED + 100),
        others=toyscore.draw_classes(model, others, NUM_EACH, SEED + 200),
    )


def run_demo(
    config: Config, out: Path, display: flow.Display, started_s: float
) -> dict[str, object]:
    """Train on {out}/photos, write contact sheet, report and bundle; Ray must be there.

    started_s: time.monotonic() at the start, so that wall_s counts everything
    """
    write_photographs(out / "photos", SUBJECT_SEED, CLASS_NOUN, NUM_PHOTOGRAPHS, size_px=256)
    photos = [read_photograph(path) for path in find_photographs(out / "photos")]
    prepared = flow.prepare(config, display)
    run = flow.open_run(config)
    flow.train(prepared, run, display)
    _link_bundle(out, run.local_path(layout.BUNDLE))
    display.say("drawing with the model before and after")
    before = look(load_pipeline(prepared.directory), config.instance_prompt)
    after = look(load_pipeline(out / layout.BUNDLE), config.instance_prompt)
    contact_sheet(photos, before, after).save(out / "contact_sheet.png")
    report = make_report(photos, before, after, load_evaluator())
    report["wall_s"] = round(time.monotonic() - started_s, 1)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def make_report(
    photos: list[Image.Image], before: Look, after: Look, network: Evaluator
) -> dict[str, object]:
    """Scores by the evaluator, each from 0 (identity: -1) to 1."""

    def both(score: object) -> dict[str, float]:
        return {"before": round(score(before), 4), "after": round(score(after), 4)}  # type: ignore[operator]

    def others(seen: Look) -> float:
        return read_pictures(network, seen.others.pictures).accuracy("class", seen.others.wanted)

    def own_class(seen: Look) -> float:
        reading = read_pictures(network, seen.subject + seen.contexts.pictures)
        return reading.accuracy("class", [CLASS_NOUN] * len(reading.identity))

    contexts = read_pictures(network, after.contexts.pictures)
    return {
        "subject_fidelity": both(
            lambda seen: toyscore.subject_fidelity(seen.subject, photos, network)
        ),
        "subject_fidelity_in_contexts": both(
            lambda seen: toyscore.subject_fidelity(seen.contexts.pictures, photos, network)
        ),
        "context_accuracy": round(contexts.accuracy("background", after.contexts.wanted), 4),
        "subject_class": both(own_class),
        "other_classes": both(others),
    }


def contact_sheet(photos: list[Image.Image], before: Look, after: Look) -> Image.Image:
    """All rows of the demo under their titles, 2x enlarged."""
    tiles = NUM_EACH
    chosen = [k * NUM_EACH for k in range(tiles)]
    rows = [
        ("the photographs", photos[:tiles]),
        (f'"a sks {CLASS_NOUN}" before training', before.subject),
        (f'"a sks {CLASS_NOUN}" after training', after.subject),
        ("in places it was never photographed", [after.contexts.pictures[i] for i in chosen]),
        ("other classes before", [before.others.pictures[i] for i in chosen]),
        ("other classes after", [after.others.pictures[i] for i in chosen]),
    ]
    return _sheet(rows, tiles, tile_px=128)


def _sheet(rows: list[tuple[str, list[Image.Image]]], columns: int, tile_px: int) -> Image.Image:
    gap, title = 6, 22
    width = columns * (tile_px + gap) + gap
    sheet = Image.new("RGB", (width, len(rows) * (tile_px + gap + title) + gap), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for r, (label, pictures) in enumerate(rows):
        top = gap + r * (tile_px + gap + title)
        pen.text((gap, top), label, fill=(30, 30, 30), font=font)
        for c, picture in enumerate(pictures):
            tile = picture.resize((tile_px, tile_px), Image.Resampling.LANCZOS)
            sheet.paste(tile, (gap + c * (tile_px + gap), top + title - 2))
    return sheet


def _link_bundle(out: Path, bundle: Path) -> None:
    """{out}/bundle leads to the run's bundle."""
    link = out / layout.BUNDLE
    link.unlink(missing_ok=True)
    link.symlink_to(bundle.resolve(), target_is_directory=True)
