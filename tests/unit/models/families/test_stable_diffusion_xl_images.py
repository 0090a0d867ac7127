"""Stable Diffusion XL from images: latents of diffusers from an image and under a mask."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from dreambooth_ray.data.image_shapes import ShapeRule
from dreambooth_ray.data.subject import read_subject_photographs
from dreambooth_ray.models.components import load_pipeline
from dreambooth_ray.sampling.denoiser import ForwardRow
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.golden_values import load_golden
from tests.families.tiny_models import build_tiny

PROMPT, STEPS, STRENGTH = "a photo of sks robot", 6, 0.5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("sdxl", tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine(directory)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def sample_pipeline(
    directory: Path, kind: str, engine: Engine, image: Any, strength: float = STRENGTH, **more: Any
) -> Tensor:
    """diffusers' latents; it takes the image as the engine encodes it, where it would draw."""
    pipeline_class = getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")
    pipeline = pipeline_class(**load_pipeline(directory).components, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    latents: Tensor = pipeline(
        prompt=PROMPT, image=engine._codec.encode(image)[None], strength=strength,
        num_inference_steps=STEPS, guidance_scale=4.0, output_type="latent",
        generator=torch.Generator().manual_seed(3), **more,
    ).images  # fmt: skip
    return latents[0]


def sample_engine(
    engine: Engine, image: Image.Image, strength: float = STRENGTH, **more: Any
) -> Tensor:
    request = Request(
        PROMPT, 3, num_inference_steps=STEPS, guidance_scale=4.0, image=image, strength=strength,
        **more,
    )  # fmt: skip
    return engine.sample([request])[0].latents


def differ(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / max(1.0, float(other.abs().max())))


def test_an_image_to_image_request_is_the_pipelines_own(
    directory: Path, engine: Engine, image: Image.Image
) -> None:
    reference = sample_pipeline(directory, "Img2Img", engine, image)
    assert differ(sample_engine(engine, image), reference) <= 1e-4


@pytest.mark.parametrize("strength", [STRENGTH, 1.0])
def test_a_masked_request_is_the_pipelines_own(
    directory: Path, engine: Engine, image: Image.Image, strength: float
) -> None:
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (0, 0, 64, 32))
    reference = sample_pipeline(
        directory, "Inpaint", engine, image, strength, mask_image=mask, width=64, height=64
    )
    assert differ(sample_engine(engine, image, strength, mask=mask), reference) <= 1e-4


def test_saved_features_give_the_same_prediction(engine: Engine) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 8, generator=generator)
    first, _ = engine._prompt_encoder.encode_pair(PROMPT, "")
    frames = torch.tensor([[64, 64, 0, 0, 64, 64]])
    conditioning = engine._functions.add_frames(first, frames)
    row = ForwardRow(x, 500.0, conditioning, returns_features=True)
    whole = engine._denoiser([row])
    assert row.cached_features is not None
    again = ForwardRow(x, 500.0, conditioning, cached_features=row.cached_features)
    assert differ(engine._denoiser([again]), whole) <= 1e-5


def test_a_photographs_frame_is_that_of_the_script(tmp_path: Path) -> None:
    """Its recording was made with photographs of 48 by 40 pixels at a resolution of 32."""
    Image.new("RGB", (48, 40)).save(tmp_path / "0.png")
    (photograph,) = read_subject_photographs(tmp_path, "a robot", ShapeRule.make_square_rule(32))
    recorded = load_golden("sdxl")["plain"].steps[0].tensors["input.time_ids"][0]
    assert list(photograph.size_conditioning) == recorded.tolist() == [40, 48, 0, 3, 32, 32]
