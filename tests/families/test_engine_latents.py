"""The engine's latents equal those of diffusers' own pipelines, alone and in company."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.models import lora
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.trainable_params import apply_method
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.golden_values import fill_lora
from tests.families.reference_pipelines import PIPELINE_STEPS, pack_flux1, pipeline_latents
from tests.families.tiny_models import build_tiny

PROMPT, SIDE = "a photo of sks robot", 64
TOLERANCE = 1e-4


def as_they_are(parts: Any, latents: Tensor) -> Tensor:
    return latents


def unpatch_flux2(parts: Any, latents: Tensor) -> Tensor:
    """As Flux2KleinPipeline gives them: without the VAE's statistics, and not in patches."""
    statistics = parts.vae.bn
    deviation = (statistics.running_var + parts.vae.config.batch_norm_eps).sqrt()
    raw = latents * deviation.view(-1, 1, 1) + statistics.running_mean.view(-1, 1, 1)
    return torch.nn.functional.pixel_shuffle(raw, 2)


def pack(parts: Any, latents: Tensor) -> Tensor:
    return pack_flux1(latents[None])[0]


@dataclass(frozen=True)
class Sampled:
    """convert: the engine's latents to what the pipeline gives. guidance: beside none

    options: further ones of the pipeline's call
    """

    convert: Callable[[Any, Tensor], Tensor] = as_they_are
    guidance: tuple[float, ...] = (1.0, 4.0)
    negative: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "z-image": Sampled(),
    "z-image-turbo": Sampled(),
    "flux1-dev": Sampled(pack),
    "flux1-schnell": Sampled(pack, guidance=(1.0,), options={"max_sequence_length": 256}),
    "flux2-klein": Sampled(unpatch_flux2),
    "sd3": Sampled(guidance=(1.0, 7.0)),
    "sd3-without-t5": Sampled(guidance=(7.0,)),
    "sd35": Sampled(guidance=(7.0,)),
    "flux2-klein-distilled": Sampled(unpatch_flux2, guidance=(1.0,)),
}


@dataclass(frozen=True)
class TinyEngine:
    directory: Path
    engine: Engine
    convert: Callable[[Tensor], Tensor]

    def sample(self, *requests: Request) -> list[Tensor]:
        """(1, C, h, w) latents as the pipeline gives them."""
        outputs = self.engine.sample(list(requests))
        return [self.convert(output.latents.float())[None] for output in outputs]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyEngine]:
    return {name: make_engine(name, tmp_path_factory.mktemp("tiny") / name) for name in FAMILIES}


def make_engine(name: str, folder: Path) -> TinyEngine:
    directory = build_tiny(name, folder)
    parts = load_components(directory)
    convert = partial(FAMILIES[name].convert, parts)
    return TinyEngine(directory, Engine(parts), convert)


def make_request(steps: int, guidance: float, seed: int = 0, **fields: Any) -> Request:
    size = {"width_px": SIDE, "height_px": SIDE} | fields
    settings = {"solver": "euler", "num_inference_steps": steps, "guidance_scale": guidance}
    return Request(size.pop("prompt", PROMPT), seed, **settings, **size)


CASES = [
    pytest.param(
        name, steps, guidance, marks=() if steps == PIPELINE_STEPS[0] else pytest.mark.fault
    )
    for name, sampled in FAMILIES.items()
    for steps in PIPELINE_STEPS
    for guidance in sampled.guidance
]


@pytest.mark.parametrize(("name", "steps", "guidance"), CASES)
def test_latents_are_the_pipeline_s(
    engines: dict[str, TinyEngine], name: str, steps: int, guidance: float
) -> None:
    (ours,) = engines[name].sample(make_request(steps, guidance))
    theirs = pipeline_latents(
        engines[name].directory, PROMPT, steps=steps, guidance=guidance, **FAMILIES[name].options
    )
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_company_changes_nothing(engines: dict[str, TinyEngine], tmp_path: Path, name: str) -> None:
    """Other prompts, of other lengths, seeds, steps, guidance and an adapter in every forward."""
    tiny = engines[name]
    directory = build_tiny(name, tmp_path / "model")
    save_adapter(directory, tmp_path / "adapter")
    tiny.engine.add_adapter("other", tmp_path / "adapter")
    guidance = FAMILIES[name].guidance[-1]
    request = make_request(4, guidance)
    others = [
        make_request(6, guidance, 1, prompt="a cat"),
        make_request(4, 1.0, 2, prompt="a robot on a table in the rain, by night " * 3),
        make_request(5, guidance, 3, adapter="other"),
        make_request(4, guidance, adapter="other"),
    ]
    (alone,) = tiny.sample(request)
    first, *rest = tiny.sample(request, *others)
    theirs = pipeline_latents(
        tiny.directory, PROMPT, steps=4, guidance=guidance, **FAMILIES[name].options
    )
    for ours in (alone, first):
        assert (ours - theirs).abs().max() <= TOLERANCE
    # The adapter is one that shows, and the others were what they are alone.
    assert (rest[-1] - first).abs().max() > 1e-2
    for other, in_company in zip(others, rest, strict=True):
        assert (tiny.sample(other)[0] - in_company).abs().max() <= TOLERANCE
    tiny.engine.remove_adapter("other")


def save_adapter(directory: Path, folder: Path) -> None:
    settings = ["train.method=lora", "train.lora.rank=2", "prior.count=0"]
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", settings)
    parts = load_components(directory)
    apply_method(fill_model_defaults(config, find_family(directory)), parts)
    fill_lora(parts.family.denoiser.name, parts.denoiser)
    folder.mkdir()
    lora.save_adapters(parts.denoiser, folder / parts.family.denoiser.name)
