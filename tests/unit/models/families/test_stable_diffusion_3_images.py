"""Start images and masks: latents of diffusers' own pipelines for them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from dreambooth_ray.models.components import load_components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.tiny_configs import SHRINK, shrink_flow_vae, shrink_sd3
from tests.families.tiny_models import TINY_MODELS, TinyModel, build_tiny

PROMPT, SIDE, STEPS, STRENGTH, GUIDANCE = "a photo of sks robot", 64, 4, 0.5, 3.0
# diffusers' pipeline for masks takes transformers of so many alone.
CHANNELS = 16


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    num_channels = {"in_channels": CHANNELS, "out_channels": CHANNELS}
    shrink = SHRINK["sd3"] | {
        "transformer": lambda config: shrink_sd3(config) | num_channels,
        "vae": lambda config: shrink_flow_vae(config) | {"latent_channels": CHANNELS},
    }
    with pytest.MonkeyPatch.context() as patch:
        model = TinyModel(TINY_MODELS["sd3"].configs, shrink)
        patch.setitem(TINY_MODELS, "sd3-of-16-channels", model)
        return build_tiny("sd3-of-16-channels", tmp_path_factory.mktemp("tiny") / "sd3")


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine(load_components(directory))


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def takes_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers samples the posterior of a start image; the engine takes its mode."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator: self.mean)


def run_pipeline(pipeline_class: type, directory: Path, **inputs: object) -> torch.Tensor:
    pipeline = pipeline_class.from_pretrained(directory, torch_dtype=torch.float32)  # type: ignore[attr-defined]
    pipeline.set_progress_bar_config(disable=True)
    latents: torch.Tensor = pipeline(
        prompt=PROMPT,
        strength=STRENGTH,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=SIDE,
        width=SIDE,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
        **inputs,
    ).images
    return latents[0]


def make_request(image: Image.Image, mask: Image.Image | None = None) -> Request:
    return Request(
        PROMPT, 5, image=image, mask=mask, strength=STRENGTH, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    )  # fmt: skip


def test_an_image_is_begun_from_as_diffusers_does(
    engine: Engine, directory: Path, image: Image.Image
) -> None:
    (ours,) = engine.sample([make_request(image)])
    theirs = run_pipeline(StableDiffusion3Img2ImgPipeline, directory, image=image)
    assert (ours.latents - theirs).abs().max() <= 1e-4


def test_what_a_mask_hides_is_generated_as_diffusers_does(
    engine: Engine, directory: Path, image: Image.Image
) -> None:
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    ours, plain = engine.sample([make_request(image, mask), make_request(image)])
    theirs = run_pipeline(StableDiffusion3InpaintPipeline, directory, image=image, mask_image=mask)
    assert (ours.latents - theirs).abs().max() <= 1e-4
    assert (ours.latents - plain.latents).abs().max() > 1e-2
