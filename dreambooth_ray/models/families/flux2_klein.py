"""FLUX.2 Klein: a transformer of packed latents, and three layers of a Qwen3 as text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_ray.models.families.flux2_checks import check_networks
from dreambooth_ray.models.families.flux2_family import make_flux2_family
from dreambooth_ray.models.family import INDEX, ModelFamily, TextEncoderPart
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.pipeline_checks import check_parts
from dreambooth_ray.models.qwen3_checks import check_qwen3

# Hidden states of the language model that are joined, 0 its embeddings: the pipeline's default.
TEXT_LAYERS = (9, 18, 27)
IS_DISTILLED = "is_distilled"


def read_model_index(directory: Path) -> dict[str, Any]:
    """model_index.json."""
    return read_json(directory / INDEX)


def _choose_family_variant(directory: Path) -> ModelFamily:
    return DISTILLED if read_model_index(directory).get(IS_DISTILLED) else FAMILY


def _check_directory(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(
        directory,
        FAMILY,
        lambda: check_qwen3(
            directory / "text_encoder", directory / "tokenizer", min_layers=TEXT_LAYERS[-1]
        ),
    )


FAMILY = make_flux2_family(
    name="flux2-klein",
    title="FLUX.2 Klein",
    pipeline_classes=("Flux2KleinPipeline",),
    text_encoders=(
        TextEncoderPart(
            "text_encoder",
            "transformers",
            "Qwen3ForCausalLM",
            tokenizer_class="Qwen2TokenizerFast",
        ),
    ),
    functions="dreambooth_ray.models.families.flux2_klein_functions:Flux2KleinFunctions",
    check=_check_directory,
    architecture=lambda _: "flux2-klein",
    choose_variant=_choose_family_variant,
)
DISTILLED = replace(
    FAMILY,
    name="flux2-klein-distilled",
    title="FLUX.2 Klein of 4 steps",
    methods=(),
    instead="it is distilled, and training would undo that: train FLUX.2-klein-base, of its size",
    has_guidance=False,
    sampling_defaults={"solver": "euler", "num_inference_steps": 4, "guidance_scale": 1.0},
)
