"""Scores that need the toy world's truth: fidelity, contexts, and the other classes."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.toyworld.attributes import BACKGROUNDS
from dreambooth_ray.toyworld.evaluator import (
    Evaluator,
    Reading,
    fidelity,
    read_images,
)
from dreambooth_ray.toyworld.held_out_prompts import attribute_prompts


@dataclass(frozen=True)
class GeneratedSet:
    """Images with the label that each prompt names."""

    images: list[Image.Image]
    labels: list[str]


def generate_images(engine: Engine, requests: list[Request]) -> list[Image.Image]:
    """The images of requests, without their latents."""
    return [sample.image for sample in engine.sample(requests)]


def generate_subject(engine: Engine, prompt: str, count: int, seed: int) -> list[Image.Image]:
    """`count` images of one prompt, seeds seed..seed+count-1."""
    return generate_images(engine, [Request(prompt, seed + k) for k in range(count)])


def generate_contexts(
    engine: Engine, prompt: str, backgrounds: list[str], count: int, seed: int
) -> GeneratedSet:
    """`count` images of the prompt's subject in each background."""
    labels = [b for b in backgrounds for _ in range(count)]
    requests = [Request(f"{prompt} {BACKGROUNDS[b]}", seed + k) for k, b in enumerate(labels)]
    return GeneratedSet(generate_images(engine, requests), labels)


def generate_classes(engine: Engine, classes: list[str], count: int, seed: int) -> GeneratedSet:
    """`count` images of each class noun alone."""
    labels = [c for c in classes for _ in range(count)]
    return GeneratedSet(
        generate_images(engine, [Request(f"a {c}", seed + k) for k, c in enumerate(labels)]), labels
    )


def score_model(engine: Engine, network: Evaluator, count: int, seed: int) -> dict[str, float]:
    """Share of images whose attributes read as prompted, by attribute, guidance 3, 25 steps."""
    prompts = attribute_prompts(count)
    images = generate_images(engine, [Request(p, seed + k) for k, (p, _) in enumerate(prompts)])
    reading = read_images(network, images)
    attribute_names = prompts[0][1]
    return {
        head: reading.accuracy(head, [truth[head] for _, truth in prompts])
        for head in attribute_names
    }


def score_folder(folder: Path, network: Evaluator) -> dict[str, object]:
    """What the evaluator reads in each image of a folder, and how alike they are."""
    paths = find_photographs(folder, max_count=10_000)
    reading = read_images(network, [read_photograph(p) for p in paths])
    rows = [
        {"file": p.name, **{head: values[i] for head, values in reading.attributes.items()}}
        for i, p in enumerate(paths)
    ]
    return {"pictures": rows, "identity_similarity": self_similarity(reading)}


def self_similarity(reading: Reading) -> float:
    """Mean cosine between different images of one reading; 1 for a single image."""
    count = len(reading.identity)
    if count == 1:
        return 1.0
    cosine_sum = float((reading.identity @ reading.identity.T).sum()) - count
    return cosine_sum / (count * (count - 1))


def subject_fidelity(
    images: list[Image.Image], photographs: list[Image.Image], network: Evaluator
) -> float:
    """Mean identity cosine of images to photographs, -1 to 1."""
    image_reading = read_images(network, images)
    photograph_reading = read_images(network, photographs)
    return fidelity(image_reading.identity, photograph_reading.identity)
