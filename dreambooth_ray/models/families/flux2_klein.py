"""FLUX.2 Klein: a transformer of packed latents, and three layers of a Qwen3 as text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_ray.models.families.flux2_klein_checks import (
    MAX_TOKENS,
    PATCH,
    VAE_DEFAULTS,
    check_networks,
)
from dreambooth_ray.models.families.flux2_klein_names import find_kohya_layer, list_file_layers
from dreambooth_ray.models.family import INDEX, ModelFamily, Part, TextEncoderPart
from dreambooth_ray.models.flow_family import make_flow_family
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.pipeline_checks import check_parts

IS_DISTILLED = "is_distilled"


def read_index(directory: Path) -> dict[str, Any]:
    """model_index.json."""
    return read_json(directory / INDEX)


def _read_vae(directory: Path) -> dict[str, Any]:
    return VAE_DEFAULTS | read_json(directory / "vae" / "config.json")


def _choose_variant(directory: Path) -> ModelFamily:
    return DISTILLED if read_index(directory).get(IS_DISTILLED) else FAMILY


def _check(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(directory)


FAMILY = make_flow_family(
    name="flux2-klein",
    title="FLUX.2 Klein",
    pipeline_classes=("Flux2KleinPipeline",),
    denoiser=Part("transformer", "diffusers", "Flux2Transformer2DModel"),
    vae=Part("vae", "diffusers", "AutoencoderKLFlux2"),
    text_encoders=(
        TextEncoderPart(
            "text_encoder",
            "transformers",
            "Qwen3ForCausalLM",
            tokenizer_class="Qwen2TokenizerFast",
        ),
    ),
    functions="dreambooth_ray.models.families.flux2_klein_functions:Flux2KleinFunctions",
    check=_check,
    size_multiple=lambda directory: compute_latent_factor(_read_vae(directory)) * PATCH,
    default_side=lambda directory: int(_read_vae(directory)["sample_size"]),
    architecture=lambda _: "flux2-klein",
    # As diffusers' script has them: of the blocks with two streams the image's attention alone.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "attn.to_out"),
    export_formats=("diffusers", "lora", "kohya"),
    kohya_names=KohyaNames(find_kohya_layer, lambda _: {}),
    list_file_layers=list_file_layers,
    max_prompt_tokens=MAX_TOKENS,
    sampling_defaults={"solver": "euler", "num_inference_steps": 50, "guidance_scale": 4.0},
    choose_variant=_choose_variant,
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
