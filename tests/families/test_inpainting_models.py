"""Models whose UNet was trained to inpaint: latents of diffusers' own pipelines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_pipeline
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.tiny_configs import SHRINK
from tests.families.tiny_models import TINY_MODELS, TinyModel, build_tiny

PROMPT, SIDE, STEPS, SEED = "a photo of sks robot", 64, 4, 5
PIPELINES = {
    "sd15": (StableDiffusionInpaintPipeline, {"requires_safety_checker": False}),
    "sdxl": (StableDiffusionXLInpaintPipeline, {"add_watermarker": False}),
}


@pytest.fixture(scope="module", params=PIPELINES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As stable-diffusion-xl-1.0-inpainting-0.1: nine channels, the mask and the masked image."""
    base = TINY_MODELS[request.param]
    shrink_unet = SHRINK[request.param]["unet"]
    shrink = base.shrink | {"unet": lambda config: shrink_unet(config) | {"in_channels": 9}}
    with pytest.MonkeyPatch.context() as patch:
        model = TinyModel(base.configs, shrink, base.changes)
        patch.setitem(TINY_MODELS, "inpainting", model)
        return build_tiny("inpainting", tmp_path_factory.mktemp("tiny") / request.param)


@pytest.fixture(autouse=True)
def takes_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers samples the posterior of a start image; the engine takes its mode."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator: self.mean)


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def mask(image: Image.Image) -> Image.Image:
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    return mask


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_masked_request_is_the_pipelines_own(
    directory: Path, image: Image.Image, mask: Image.Image, strength: float
) -> None:
    pipeline_class, options = PIPELINES[directory.name]
    components = dict.fromkeys(("image_encoder",)) | load_pipeline(directory).components
    pipeline = pipeline_class(**components, **options)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT, image=image, mask_image=mask, strength=strength, num_inference_steps=STEPS,
        guidance_scale=4.0, output_type="latent", width=SIDE, height=SIDE,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]  # fmt: skip
    request = Request(
        PROMPT, SEED, solver="ddim", num_inference_steps=STEPS, guidance_scale=4.0, image=image,
        mask=mask, strength=strength,
    )  # fmt: skip
    plain = Request(PROMPT, SEED, num_inference_steps=STEPS, guidance_scale=4.0, image=image)
    ours, unmasked = (output.latents for output in Engine(directory).sample([request, plain]))
    assert (ours - theirs).abs().max() <= 1e-4 * max(1.0, float(theirs.abs().max()))
    assert (ours - unmasked).abs().max() > 1e-2


def test_it_is_not_trained(directory: Path) -> None:
    config = parse_config("subject: {photos: p, class_noun: x}", "x", [f"model.uri={directory}"])
    with pytest.raises(ConfigError, match=r"model\.uri=.*inpainting model.*9 channels"):
        check_training_settings(config, model_directory(str(directory)))
