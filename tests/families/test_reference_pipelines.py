"""Every tiny model is sampled by diffusers' own pipeline, and what an engine can miss shows."""

from pathlib import Path

import pytest
import torch

from tests.families.reference_pipelines import pipeline_latents
from tests.families.tiny_models import TINY_MODELS, build_tiny

PROMPT = "a photo of sks robot"


@pytest.fixture(scope="module", params=TINY_MODELS)
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)


def test_a_pipeline_repeats_its_latents(tiny_model: Path) -> None:
    latents = pipeline_latents(tiny_model, PROMPT)
    assert torch.equal(latents, pipeline_latents(tiny_model, PROMPT))
    assert latents.isfinite().all()
    assert latents[0].numel() == 4 * 8 * 8  # FLUX.1's stay packed


def test_prompt_guidance_and_steps_matter(tiny_model: Path) -> None:
    latents = pipeline_latents(tiny_model, PROMPT)
    others = {
        "prompt": pipeline_latents(tiny_model, "a cat on a table"),
        "guidance": pipeline_latents(tiny_model, PROMPT, guidance=4.0),
        "steps": pipeline_latents(tiny_model, PROMPT, steps=5),
        "seed": pipeline_latents(tiny_model, PROMPT, seed=1),
    }
    unchanged = {k for k, v in others.items() if (v - latents).abs().max() < 1e-2}
    # Distilled models of FLUX have their guidance built in.
    is_distilled = tiny_model.name.endswith(("distilled", "schnell"))
    assert unchanged == ({"guidance"} if is_distilled else set())


def test_a_negative_prompt_matters_where_there_is_one(tiny_model: Path) -> None:
    if "flux" in tiny_model.name:
        with pytest.raises(ValueError, match="no negative prompt"):
            pipeline_latents(tiny_model, PROMPT, "blue", guidance=4.0)
        return
    blue, empty, none = (
        pipeline_latents(tiny_model, PROMPT, negative, guidance=4.0)
        for negative in ("blue", "", None)
    )
    assert (blue - empty).abs().max() > 1e-2
    # SDXL alone tells nothing (zeros) from an empty text.
    assert torch.equal(empty, none) == (tiny_model.name != "sdxl")
