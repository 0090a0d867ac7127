"""Scores that need the toy world's truth: fidelity, context, and what became of other classes."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.models.source import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.toyworld.attributes import BACKGROUNDS, CLASSES, COLOUR_NAMES, PATTERNS
from dreambooth_ray.toyworld.evaluator import (
    Evaluator,
    Reading,
    fidelity,
    load_evaluator,
    read_images,
)


@dataclass(frozen=True)
class GeneratedSet:
    """Images with what their prompts asked for."""

    images: list[Image.Image]
    wanted: list[str]


def draw(engine: Engine, requests: list[Request]) -> list[Image.Image]:
    """The images of requests, without their latents."""
    return [drawn.image for drawn in engine.draw(requests)]


def draw_subject(engine: Engine, prompt: str, count: int, seed: int) -> list[Image.Image]:
    """`count` images of one prompt, seeds seed..seed+count-1."""
    return draw(engine, [Request(prompt, seed + k) for k in range(count)])


def draw_contexts(
    engine: Engine, prompt: str, backgrounds: list[str], count: int, seed: int
) -> GeneratedSet:
    """`count` images of the prompt's subject in each background."""
    wanted = [b for b in backgrounds for _ in range(count)]
    requests = [Request(f"{prompt} {BACKGROUNDS[b]}", seed + k) for k, b in enumerate(wanted)]
    return GeneratedSet(draw(engine, requests), wanted)


def draw_classes(engine: Engine, classes: list[str], count: int, seed: int) -> GeneratedSet:
    """`count` images of each class noun alone."""
    wanted = [c for c in classes for _ in range(count)]
    return GeneratedSet(
        draw(engine, [Request(f"a {c}", seed + k) for k, c in enumerate(wanted)]), wanted
    )


def attribute_prompts(count: int) -> list[tuple[str, dict[str, str]]]:
    """`count` held-out prompts naming class, colour, pattern and background, with the truth.

    Attributes run through their values at strides that share no factor, so each appears
    equally often and no combination repeats within 400 prompts.
    """
    backgrounds = list(BACKGROUNDS)
    found = []
    for k in range(count):
        truth = {
            "class": CLASSES[k % 10],
            "colour": COLOUR_NAMES[(k + k // 10) % 10],
            "pattern": PATTERNS[(k + k // 4) % 4],
            "background": backgrounds[(3 * k + k // 100) % 10],
        }
        words = f"a {truth['colour']} {truth['pattern']} {truth['class']}"
        found.append((f"{words} {BACKGROUNDS[truth['background']]}", truth))
    return found


def score_model(engine: Engine, network: Evaluator, count: int, seed: int) -> dict[str, float]:
    """Share of images whose attributes read as prompted, by attribute, guidance 3, 25 steps."""
    prompts = attribute_prompts(count)
    images = draw(engine, [Request(p, seed + k) for k, (p, _) in enumerate(prompts)])
    reading = read_images(network, images)
    heads = prompts[0][1]
    return {head: reading.accuracy(head, [truth[head] for _, truth in prompts]) for head in heads}


def score_target(target: str, count: int, seed: int) -> dict[str, object]:
    """Score a folder of images, or a model by `count` held-out prompts.

    raises: ConfigError, DataError
    """
    network = load_evaluator()
    folder = Path(target)
    if folder.is_dir() and not any(
        (folder / f).exists() for f in ("model_index.json", "config.yaml")
    ):
        return score_folder(folder, network)
    engine = Engine(model_directory(target, key="TARGETS"))
    return dict(score_model(engine, network, count, seed))


def score_folder(folder: Path, network: Evaluator) -> dict[str, object]:
    """What the evaluator reads in each image of a folder, and how alike they are."""
    paths = find_photographs(folder, most=10_000)
    reading = read_images(network, [read_photograph(p) for p in paths])
    rows = [
        {"file": p.name, **{head: seen[i] for head, seen in reading.attributes.items()}}
        for i, p in enumerate(paths)
    ]
    return {"pictures": rows, "identity_similarity": self_similarity(reading)}


def self_similarity(reading: Reading) -> float:
    """Mean cosine between different images of one reading; 1 for a single image."""
    count = len(reading.identity)
    if count == 1:
        return 1.0
    total = float((reading.identity @ reading.identity.T).sum()) - count
    return total / (count * (count - 1))


def subject_fidelity(
    images: list[Image.Image], photographs: list[Image.Image], network: Evaluator
) -> float:
    """Mean identity cosine of images to photographs, -1 to 1."""
    made, real = read_images(network, images), read_images(network, photographs)
    return fidelity(made.identity, real.identity)
