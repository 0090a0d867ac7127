"""Start images and masks: latents of diffusers' own pipelines for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ChromaImg2ImgPipeline,
    ChromaInpaintPipeline,
    ChromaPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from dreambooth_ray.models.components import load_components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.reference_pipelines import encode_for_chroma, pack_flux1
from tests.families.tiny_configs import SHRINK, shrink_flow_vae, shrink_sd3
from tests.families.tiny_models import TINY_MODELS, TinyModel, build_tiny

PROMPT, SIDE, STEPS, STRENGTH = "a photo of sks robot", 64, 4, 0.5


@dataclass(frozen=True)
class StartImages:
    """The pipelines of a tiny model. guidance: ours, and as the pipeline counts it, or None

    convert: (1, C, h, w) latents of the engine to those of the pipeline
    """

    image_pipeline: Any
    mask_pipeline: Any
    guidance: tuple[float, float | None]
    convert: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents
    options: Mapping[str, Any] = field(default_factory=dict)


MODELS = {
    "z-image": StartImages(ZImageImg2ImgPipeline, ZImageInpaintPipeline, (3.0, 2.0)),
    "flux1-dev": StartImages(FluxImg2ImgPipeline, FluxInpaintPipeline, (3.0, 3.0), pack_flux1),
    "qwen-image": StartImages(
        QwenImageImg2ImgPipeline,
        QwenImageInpaintPipeline,
        (3.0, None),
        pack_flux1,
        {"true_cfg_scale": 3.0, "negative_prompt": ""},
    ),
    "chroma": StartImages(ChromaImg2ImgPipeline, ChromaInpaintPipeline, (3.0, 3.0), pack_flux1),
    "flux1-schnell": StartImages(
        FluxImg2ImgPipeline,
        FluxInpaintPipeline,
        (1.0, 0.0),
        pack_flux1,
        {"max_sequence_length": 256},
    ),
    "sd3-of-16-channels": StartImages(
        StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline, (3.0, 3.0)
    ),
}


def shrink_to_16_channels() -> TinyModel:
    """diffusers' pipeline for masks takes Stable Diffusion 3's of so many alone."""
    channels = {"in_channels": 16, "out_channels": 16}
    shrink = SHRINK["sd3"] | {
        "transformer": lambda config: shrink_sd3(config) | channels,
        "vae": lambda config: shrink_flow_vae(config) | {"latent_channels": 16},
    }
    return TinyModel(TINY_MODELS["sd3"].configs, shrink)


@pytest.fixture(scope="module", params=MODELS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY_MODELS, "sd3-of-16-channels", shrink_to_16_channels())
        return build_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)


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


def run_pipeline(pipeline_class: Any, directory: Path, **inputs: object) -> torch.Tensor:
    model = MODELS[directory.name]
    pipeline = pipeline_class.from_pretrained(directory, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    told: dict[str, Any] = {"prompt": PROMPT}
    if directory.name == "chroma":
        told = encode_for_chroma(pipeline, PROMPT, "")
        # Of the other pipelines masks become numbers on the way.
        # That for masks asks for a key that Chroma's configuration has not.
        pipeline.transformer.register_to_config(guidance_embeds=False)
        pipeline._prepare_attention_mask = partial(ChromaPipeline._prepare_attention_mask, pipeline)
    latents: torch.Tensor = pipeline(
        **told,
        strength=STRENGTH,
        num_inference_steps=STEPS,
        guidance_scale=model.guidance[1],
        height=SIDE,
        width=SIDE,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
        **model.options,
        **inputs,
    ).images
    return latents


def sample(engine: Engine, directory: Path, *images: Mapping[str, Any]) -> list[torch.Tensor]:
    """As the pipeline gives latents; images: fields of a request each"""
    model = MODELS[directory.name]
    requests = [
        Request(
            PROMPT, 5, strength=STRENGTH, num_inference_steps=STEPS,
            guidance_scale=model.guidance[0], **fields,
        )
        for fields in images
    ]  # fmt: skip
    return [model.convert(output.latents[None]) for output in engine.sample(requests)]


def test_an_image_is_begun_from_as_diffusers_does(
    engine: Engine, directory: Path, image: Image.Image
) -> None:
    (ours,) = sample(engine, directory, {"image": image})
    theirs = run_pipeline(MODELS[directory.name].image_pipeline, directory, image=image)
    assert (ours - theirs).abs().max() <= 1e-4


def test_what_a_mask_hides_is_generated_as_diffusers_does(
    engine: Engine, directory: Path, image: Image.Image
) -> None:
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    ours, plain = sample(engine, directory, {"image": image, "mask": mask}, {"image": image})
    theirs = run_pipeline(
        MODELS[directory.name].mask_pipeline, directory, image=image, mask_image=mask
    )
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - plain).abs().max() > 1e-2
