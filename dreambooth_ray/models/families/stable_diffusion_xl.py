"""Stable Diffusion XL: a UNet that is told of sizes, and two of CLIP's text encoders."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.clip_unet_checks import (
    Configs,
    check_unet_inputs,
    check_weights,
    read_network_configs,
    restrict_to_sampling,
)
from dreambooth_ray.models.clip_unet_family import CLIP_UNET_FEATURES, make_clip_unet_family
from dreambooth_ray.models.family import INDEX, ModelFamily, make_clip_encoder_part
from dreambooth_ray.models.kohya_names import KohyaLayer, KohyaNames
from dreambooth_ray.models.original_unet_layer_names import list_adapter_layer_names
from dreambooth_ray.models.part_configs import CONFIG_FILES, read_json, read_part_config
from dreambooth_ray.models.pipeline_checks import describe_required_directory
from dreambooth_ray.models.single_file_names import (
    XL_CLIP_PREFIX,
    XL_OPEN_CLIP_PREFIX,
    SingleFileEncoderNames,
    UNetBlocks,
    find_original_unet_name,
)

_NUM_SIZES = 6


def _check_directory(directory: Path) -> None:
    """Read every file that loading depends on; raises ConfigError naming the file."""
    if (directory / INDEX).is_file():
        _refuse_refiner(read_json(directory / INDEX))
    configs = read_network_configs(directory, FAMILY)
    _check_inputs(directory, configs)
    check_unet_inputs(directory, FAMILY, configs)
    check_weights(directory, FAMILY, configs)


def _refuse_refiner(index: dict[str, Any]) -> None:
    if index.get("requires_aesthetics_score") or index.get("text_encoder") == [None, None]:
        raise ConfigError(
            f"its {INDEX} is that of Stable Diffusion XL's refiner, which only goes on with the "
            "base model's images; take the base model"
        )


def _check_inputs(directory: Path, configs: Configs) -> None:
    unet_config, unet_folder, directory_requirement = (
        configs["unet"],
        directory / "unet",
        describe_required_directory(FAMILY),
    )
    if unet_config["addition_embed_type"] != "text_time":
        raise ConfigError(
            f"{unet_folder} is told of no sizes "
            f"(addition_embed_type={unet_config['addition_embed_type']!r}); {directory_requirement}"
        )
    for key in ("num_class_embeds", "encoder_hid_dim"):
        if unet_config[key] is not None:
            raise ConfigError(
                f"{unet_folder} needs inputs beside the prompt ({key}={unet_config[key]!r}); "
                f"{directory_requirement}"
            )
    second_encoder_config = configs["text_encoder_2"]
    pooled_width = second_encoder_config["projection_dim"]
    added_embedding_width = unet_config["projection_class_embeddings_input_dim"]
    size_width = unet_config["addition_time_embed_dim"]
    are_numbers = type(size_width) is int and type(pooled_width) is int
    if not are_numbers or added_embedding_width != _NUM_SIZES * size_width + pooled_width:
        raise ConfigError(
            f"{unet_folder} takes pooled embeddings and sizes of width {added_embedding_width}, "
            f"and text_encoder_2/ gives {pooled_width} beside {_NUM_SIZES} sizes; the parts are of "
            "different models"
        )
    encoder_token_limits = {
        configs[p.name]["max_position_embeddings"] for p in FAMILY.text_encoders
    }
    if len(encoder_token_limits) > 1:
        raise ConfigError(
            f"{directory}: text_encoder/ and text_encoder_2/ take prompts of different lengths; "
            "the parts are of different models"
        )
    if configs["vae"].get("latents_mean") or configs["vae"].get("latents_std"):
        raise ConfigError(
            f"{directory / 'vae'} gives latents with statistics of their own (latents_mean), as "
            f"Playground's models have; {directory_requirement}"
        )


def _choose_sampling_only_variant(directory: Path) -> ModelFamily:
    scheduler_path = directory / "scheduler" / CONFIG_FILES["scheduler"]
    scheduler_config = read_part_config(directory, "scheduler") if scheduler_path.is_file() else {}
    is_trailing = scheduler_config.get("timestep_spacing") == "trailing"
    return (
        DISTILLED
        if is_trailing and scheduler_config["prediction_type"] == "epsilon"
        else restrict_to_sampling(FAMILY, directory)
    )


# Of sd-scripts' networks/lora.py: see `stable_diffusion`.
_KOHYA_UNET = re.compile(
    r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)"
    r"\.(attentions|resnets|downsamplers|upsamplers)\.\d+\..+"
)
_KOHYA_TEXT = re.compile(r"(?:text_model\.)?(encoder\.layers\.\d+\.(?:self_attn|mlp)\..+)")
_KOHYA_TEXT_PREFIXES = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def _find_kohya_layer(directory: Path, part: str, layer: str) -> KohyaLayer | None:
    """As `KohyaNames.find`: the UNet's layers have the names of its authors."""
    if part in _KOHYA_TEXT_PREFIXES:
        match = _KOHYA_TEXT.fullmatch(layer)
        layer_path = f"text_model.{match[1]}" if match else ""
        kohya_prefix = _KOHYA_TEXT_PREFIXES[part]
    else:
        unet_config = read_part_config(directory, "unet")
        numbered_block_types = enumerate(unet_config["up_block_types"])
        attention_blocks = [
            block_index
            for block_index, block_type in numbered_block_types
            if block_type.startswith("CrossAttn")
        ]
        unet_blocks = UNetBlocks(unet_config["layers_per_block"], attention_blocks)
        is_read_by_kohya = _KOHYA_UNET.fullmatch(layer)
        layer_path, kohya_prefix = (
            find_original_unet_name(layer, unet_blocks) if is_read_by_kohya else "",
            "lora_unet",
        )
    return KohyaLayer(f"{kohya_prefix}_{layer_path.replace('.', '_')}") if layer_path else None


FAMILY = make_clip_unet_family(
    name="stable-diffusion-xl",
    title="Stable Diffusion XL",
    pipeline_classes=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    text_encoders=(
        make_clip_encoder_part(),
        make_clip_encoder_part("CLIPTextModelWithProjection", "_2"),
    ),
    functions=(
        "dreambooth_ray.models.families.stable_diffusion_xl_functions:StableDiffusionXLFunctions"
    ),
    check=_check_directory,
    choose_variant=_choose_sampling_only_variant,
    architecture=lambda _: "stable-diffusion-xl-v1-base",
    features=frozenset(CLIP_UNET_FEATURES),
    kohya_names=KohyaNames(
        _find_kohya_layer,
        lambda _: {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
    ),
    list_adapter_layer_names=list_adapter_layer_names,
    single_file_encoders=lambda _: {
        "text_encoder": SingleFileEncoderNames("clip", XL_CLIP_PREFIX),
        "text_encoder_2": SingleFileEncoderNames("open_clip", XL_OPEN_CLIP_PREFIX),
    },
    text_function_has_one_output=False,
    layers_left_out=1,
    # diffusers' pipeline has its scheduler and this guidance; it takes 50 steps.
    sampling_defaults={"solver": "euler", "num_inference_steps": 30, "guidance_scale": 5.0},
)
DISTILLED = replace(
    FAMILY,
    name="stable-diffusion-xl-distilled",
    title="Stable Diffusion XL of few steps",
    methods=(),
    instead="its scheduler (timestep_spacing=trailing) is that of SDXL Turbo and Lightning, and "
    "training would undo their distillation: train the base model",
    sampling_defaults={"solver": "euler", "num_inference_steps": 4, "guidance_scale": 1.0},
)
