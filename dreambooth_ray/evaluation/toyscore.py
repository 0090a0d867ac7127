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
    PredictedAttributes,
    fidelity,
    predict_attributes,
)
from dreambooth_ray.toyworld.scoring_prompts import attribute_prompts


@dataclass(frozen=True)
class LabelledImages:
    """Images with the label that each prompt names."""

    images: list[Image.Image]
    labels: list[str]


def generate_images(engine: Engine, requests: list[Request]) -> list[Image.Image]:
    """The images of requests, without their latents."""
    return [sample.image for sample in engine.sample(requests)]


def generate_subject_images(
    engine: Engine, prompt: str, count: int, seed: int
) -> list[Image.Image]:
    """`count` images of one prompt, seeds seed..seed+count-1."""
    return generate_images(engine, [Request(prompt, seed + k) for k in range(count)])


def generate_context_images(
    engine: Engine, prompt: str, backgrounds: list[str], count: int, seed: int
) -> LabelledImages:
    """`count` images of the prompt's subject in each background."""
    background_labels = [b for b in backgrounds for _ in range(count)]
    sampling_requests = [
        Request(f"{prompt} {BACKGROUNDS[b]}", seed + k) for k, b in enumerate(background_labels)
    ]
    return LabelledImages(generate_images(engine, sampling_requests), background_labels)


def generate_labelled_classes(
    engine: Engine, classes: list[str], count: int, seed: int
) -> LabelledImages:
    """`count` images of each class noun alone."""
    class_labels = [c for c in classes for _ in range(count)]
    return LabelledImages(
        generate_images(engine, [Request(f"a {c}", seed + k) for k, c in enumerate(class_labels)]),
        class_labels,
    )


def score_attribute_accuracy(
    engine: Engine, network: Evaluator, count: int, seed: int
) -> dict[str, float]:
    """Share of images whose attributes read as prompted, by attribute, guidance 3, 25 steps."""
    prompts_with_attributes = attribute_prompts(count)
    images = generate_images(
        engine, [Request(p, seed + k) for k, (p, _) in enumerate(prompts_with_attributes)]
    )
    image_predictions = predict_attributes(network, images)
    attribute_names = prompts_with_attributes[0][1]
    return {
        head: image_predictions.accuracy(
            head, [truth[head] for _, truth in prompts_with_attributes]
        )
        for head in attribute_names
    }


def predict_folder_attributes(folder: Path, network: Evaluator) -> dict[str, object]:
    """What the evaluator reads in each image of a folder, and how alike they are."""
    image_paths = find_photographs(folder, max_count=10_000)
    image_predictions = predict_attributes(network, [read_photograph(p) for p in image_paths])
    image_rows = [
        {
            "file": p.name,
            **{
                head: attribute_values[i]
                for head, attribute_values in image_predictions.attributes.items()
            },
        }
        for i, p in enumerate(image_paths)
    ]
    return {"pictures": image_rows, "identity_similarity": self_similarity(image_predictions)}


def self_similarity(reading: PredictedAttributes) -> float:
    """Mean cosine between different images of one reading; 1 for a single image."""
    num_images = len(reading.identity)
    if num_images == 1:
        return 1.0
    cosine_sum = float((reading.identity @ reading.identity.T).sum()) - num_images
    return cosine_sum / (num_images * (num_images - 1))


def subject_fidelity(
    images: list[Image.Image], photographs: list[Image.Image], network: Evaluator
) -> float:
    """Mean identity cosine of images to photographs, -1 to 1."""
    image_predictions = predict_attributes(network, images)
    photograph_predictions = predict_attributes(network, photographs)
    return fidelity(image_predictions.identity, photograph_predictions.identity)
