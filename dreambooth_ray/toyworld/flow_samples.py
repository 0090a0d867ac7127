"""Samples of the flow model by diffusers' own pipeline, their scores and a contact sheet."""

import torch
from diffusers import ZImagePipeline
from PIL import Image

from dreambooth_ray.toyworld.evaluator import Evaluator, predict_attributes
from dreambooth_ray.toyworld.scoring_prompts import attribute_prompts
from dreambooth_ray.toyworld.world_images import SIZE_PX

STEPS = 25
# Z-Image adds scale * (conditional - unconditional) to the conditional: what is 3 elsewhere is 2.
GUIDANCE = 2.0


def sample_images(
    pipeline: ZImagePipeline,
    prompts: list[str],
    seed: int,
    guidance_scale: float = GUIDANCE,
    steps: int = STEPS,
    batch_size: int = 50,
) -> list[Image.Image]:
    """One image a prompt, 64 px; image k starts from noise of seed `seed` + k, on any device."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        batch_prompts = prompts[start : start + batch_size]
        generators = [
            torch.Generator().manual_seed(seed + start + k) for k in range(len(batch_prompts))
        ]
        images += pipeline(
            list(batch_prompts),
            height=SIZE_PX,
            width=SIZE_PX,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            max_sequence_length=64,
        ).images
    return images


def score_flow_images(images: list[Image.Image], network: Evaluator) -> dict[str, float]:
    """Share of images that read as the held-out prompt of the same place, by attribute."""
    true_attributes = [truth for _, truth in attribute_prompts(len(images))]
    predicted_attributes = predict_attributes(network, images)
    return {
        head: predicted_attributes.accuracy(head, [truth[head] for truth in true_attributes])
        for head in true_attributes[0]
    }


def contact_sheet(images: list[Image.Image], columns: int = 10) -> Image.Image:
    """Images of one size in rows, 2 px apart."""
    image_pitch_px = images[0].width + 2
    num_rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * image_pitch_px - 2, num_rows * image_pitch_px - 2), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * image_pitch_px, k // columns * image_pitch_px))
    return sheet
