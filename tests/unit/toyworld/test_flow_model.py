"""The flow model that ships."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline

from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.toyworld.flow_model import load_flow_vae
from dreambooth_ray.toyworld.flow_samples import contact_sheet, sample_images, score_flow_images
from dreambooth_ray.toyworld.flow_tokenizer import new_flow_tokenizer
from dreambooth_ray.toyworld.scoring_prompts import attribute_prompts
from dreambooth_ray.toyworld.world import random_scene_layout, random_subject, render_image
from dreambooth_ray.toyworld.world_images import to_tensor
from tests.families.reference_pipelines import load_pipeline

SHIPPED = Path(str(files("dreambooth_ray.toyworld") / "weights" / "flow-pipeline"))


@pytest.fixture(scope="module")
def pipeline() -> ZImagePipeline:
    return load_pipeline(SHIPPED)


def test_it_is_small_and_its_tokenizer_is_the_codes(pipeline: ZImagePipeline) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) <= 20_000_000
    assert pipeline.tokenizer.get_vocab() == new_flow_tokenizer().get_vocab()
    assert pipeline.tokenizer.chat_template == new_flow_tokenizer().chat_template


def test_it_paints_what_prompts_name(pipeline: ZImagePipeline) -> None:
    """A few images in few steps; `pytest -m demo` has the bars."""
    prompts = [prompt for prompt, _ in attribute_prompts(6)]
    images = sample_images(pipeline, prompts, seed=0, steps=8)
    scores = score_flow_images(images, load_evaluator())
    assert min(scores["class"], scores["colour"], scores["background"]) >= 0.8


def test_an_image_does_not_depend_on_its_batch(pipeline: ZImagePipeline) -> None:
    prompts = ["a red robot", "a blue fish under water", "a green car at night"]
    together, alone = (
        sample_images(pipeline, prompts, seed=4, steps=2, batch_size=size) for size in (3, 1)
    )
    for one, other in zip(together, alone, strict=True):
        difference = torch.tensor(list(one.tobytes())) - torch.tensor(list(other.tobytes()))
        assert difference.abs().max() <= 2
    sheet = contact_sheet(together, columns=2)
    assert sheet.size == (2 * 64 + 2, 2 * 64 + 2)
    assert sheet.crop((66, 0, 130, 64)).tobytes() == together[1].tobytes()


@torch.no_grad()
def test_latents_have_unit_variance_and_decode() -> None:
    vae = load_flow_vae()
    images = [render_image(random_subject(3, k), random_scene_layout(3, k)) for k in range(40)]
    pixels = to_tensor(np.stack([np.asarray(image) for image in images]))
    latents = vae.encode(pixels).latent_dist.mean
    scaled = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    assert scaled.mean().abs() < 0.1
    assert 0.8 < scaled.std() < 1.2
    decoded = vae.decode(scaled / vae.config.scaling_factor + vae.config.shift_factor).sample
    assert (decoded - pixels).abs().mean() < 0.06
