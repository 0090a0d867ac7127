"""Sana: linear attention over latents of 32 pixels, the states of Gemma 2 as text."""

import math
from dataclasses import replace
from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.dc_vae_checks import read_dc_vae_config
from dreambooth_ray.models.families.sana_checks import (
    MAX_TOKENS,
    MULTIPLE,
    check_networks,
    read_transformer_config,
)
from dreambooth_ray.models.family import INDEX, ModelFamily, Part, TextEncoderPart
from dreambooth_ray.models.flow_family import make_flow_family
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.pipeline_checks import check_parts

# Pipelines of diffusers that are not this one, and what their models are.
_OTHERS = {
    "SanaSprintPipeline": "Sana Sprint, which is distilled",
    "SanaSprintImg2ImgPipeline": "Sana Sprint, which is distilled",
    "SanaControlNetPipeline": "a Sana with a ControlNet",
    "SanaPAGPipeline": "a Sana with perturbed attention",
}
_SCHEDULER = "DPMSolverMultistepScheduler"


def _check_directory(directory: Path) -> None:
    pipeline_class = read_json(directory / INDEX)["_class_name"]
    if pipeline_class in _OTHERS:
        raise ConfigError(
            f"its {INDEX} says {pipeline_class}, of {_OTHERS[pipeline_class]}; take Sana itself"
        )
    check_parts(directory, FAMILY)
    check_networks(directory)


def _read_latent_factor(directory: Path) -> int:
    return compute_latent_factor(read_dc_vae_config(directory / "vae"))


def _read_default_side(directory: Path) -> int:
    transformer_config = read_transformer_config(directory / "transformer")
    return int(transformer_config["sample_size"]) * _read_latent_factor(directory)


def _choose_family_variant(directory: Path) -> ModelFamily:
    """By the scheduler: whether the network is told whole timesteps in sampling."""
    scheduler_config = read_json(directory / "scheduler" / "scheduler_config.json")
    if scheduler_config.get("_class_name") == _SCHEDULER:
        return FAMILY
    return replace(
        FAMILY,
        functions=FAMILY.functions.replace(":Sana", ":FlowMatchSana"),
        sampling_defaults={**FAMILY.sampling_defaults, "solver": "euler"},
    )


FAMILY = make_flow_family(
    name="sana",
    title="Sana",
    pipeline_classes=("SanaPipeline", *_OTHERS),
    denoiser=Part("transformer", "diffusers", "SanaTransformer2DModel"),
    vae=Part("vae", "diffusers", "AutoencoderDC"),
    text_encoders=(
        TextEncoderPart(
            "text_encoder",
            "transformers",
            "Gemma2Model",
            tokenizer_class="GemmaTokenizerFast",
            overflows=True,
        ),
    ),
    flow_schedulers=(_SCHEDULER,),
    functions="dreambooth_ray.models.families.sana_functions:SanaFunctions",
    check=_check_directory,
    choose_variant=_choose_family_variant,
    size_multiple=lambda directory: math.lcm(MULTIPLE, _read_latent_factor(directory)),
    default_side=_read_default_side,
    architecture=lambda _: "sana",
    # As diffusers' script has them.
    lora_targets=("to_q", "to_k", "to_v"),
    max_prompt_tokens=MAX_TOKENS,
    sampling_defaults={"solver": "dpmpp_2m", "num_inference_steps": 20, "guidance_scale": 4.5},
)
