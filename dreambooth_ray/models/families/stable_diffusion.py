"""Stable Diffusion 1.x and 2.x: a UNet, and CLIP's text encoder."""

import re
from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.clip_unet_checks import (
    Configs,
    check_unet_inputs,
    check_weights,
    read_network_configs,
    restrict_to_sampling,
)
from dreambooth_ray.models.clip_unet_family import CLIP_UNET_FEATURES, make_clip_unet_family
from dreambooth_ray.models.family import ModelFamily, make_clip_encoder_part
from dreambooth_ray.models.kohya_names import KohyaLayer, KohyaNames
from dreambooth_ray.models.original_unet_layer_names import list_adapter_layer_names
from dreambooth_ray.models.part_configs import read_part_config
from dreambooth_ray.models.pipeline_checks import describe_required_directory
from dreambooth_ray.models.single_file_names import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    SingleFileEncoderNames,
)


def _check_directory(directory: Path) -> None:
    """Read every file that loading depends on; raises ConfigError naming the file."""
    configs = read_network_configs(directory, FAMILY)
    _refuse_extra_inputs(directory, configs)
    check_unet_inputs(directory, FAMILY, configs)
    check_weights(directory, FAMILY, configs)


def _refuse_extra_inputs(directory: Path, configs: Configs) -> None:
    unet_config, unet_folder, directory_requirement = (
        configs["unet"],
        directory / "unet",
        describe_required_directory(FAMILY),
    )
    if unet_config["addition_embed_type"] == "text_time":
        raise ConfigError(f"{unet_folder} is Stable Diffusion XL's UNet; {directory_requirement}")
    for key in ("addition_embed_type", "num_class_embeds", "encoder_hid_dim"):
        if unet_config[key] is not None:
            raise ConfigError(
                f"{unet_folder} needs inputs beside the prompt ({key}={unet_config[key]!r}); "
                f"{directory_requirement}"
            )


def _choose_sampling_only_variant(directory: Path) -> ModelFamily:
    return restrict_to_sampling(FAMILY, directory)


def _is_v2(directory: Path) -> bool:
    """Whether the text encoder is 2.x's open_clip, told by its activation, or 1.x's CLIP."""
    return bool(read_part_config(directory, "text_encoder")["hidden_act"] == "gelu")


def _name_architecture(directory: Path) -> str:
    return f"stable-diffusion-v{2 if _is_v2(directory) else 1}"


_KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
# sd-scripts looks for adapters inside Transformer2DModel, ResnetBlock2D, Downsample2D, Upsample2D,
# CLIPAttention and CLIPMLP alone, and passes over what else a file has (networks/lora.py).
_KOHYA_LAYERS = {
    "unet": re.compile(
        r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)"
        r"\.(attentions|resnets|downsamplers|upsamplers)\..+"
    ),
    "text_encoder": re.compile(r"(text_model\.)?encoder\.layers\.\d+\.(self_attn|mlp)\..+"),
}


def find_kohya_layer(directory: Path, part: str, layer: str) -> KohyaLayer | None:
    """As `KohyaNames.find`."""
    if not _KOHYA_LAYERS[part].fullmatch(layer):
        return None
    underscored_layer = layer.removeprefix("text_model.").replace(".", "_")
    return KohyaLayer(f"{_KOHYA_PREFIXES[part]}{underscored_layer}")


def _choose_single_file_encoders(directory: Path) -> dict[str, SingleFileEncoderNames]:
    clip_layout = SingleFileEncoderNames("clip", CLIP_PREFIX)
    open_clip_layout = SingleFileEncoderNames("open_clip", OPEN_CLIP_PREFIX)
    return {"text_encoder": open_clip_layout if _is_v2(directory) else clip_layout}


def _make_kohya_metadata(directory: Path) -> dict[str, str]:
    is_v2 = _is_v2(directory)
    return {"ss_base_model_version": "sd_v2" if is_v2 else "sd_v1", "ss_v2": str(is_v2)}


FAMILY = make_clip_unet_family(
    name="stable-diffusion",
    title="Stable Diffusion 1.x and 2.x",
    # All of them are made of the same five parts.
    pipeline_classes=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInpaintPipelineLegacy",
    ),
    text_encoders=(make_clip_encoder_part(),),
    functions="dreambooth_ray.models.families.stable_diffusion_functions:StableDiffusionFunctions",
    check=_check_directory,
    choose_variant=_choose_sampling_only_variant,
    architecture=_name_architecture,
    features=frozenset(CLIP_UNET_FEATURES),
    kohya_names=KohyaNames(find_kohya_layer, _make_kohya_metadata),
    list_adapter_layer_names=list_adapter_layer_names,
    single_file_encoders=_choose_single_file_encoders,
)
