"""Stable Diffusion 1.x and 2.x: a UNet, and CLIP's text encoder."""

import re
from pathlib import Path

from dreambooth_ray.models.directory_checks import PIPELINES, check_directory
from dreambooth_ray.models.family import ModelFamily, Part, TextEncoderPart
from dreambooth_ray.models.kohya_names import KohyaLayer, KohyaNames
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.part_configs import SAMPLE_SIZE, read_part_config


def _read_size_multiple(directory: Path) -> int:
    """The UNet halves latents at every block but the last."""
    vae, unet = read_part_config(directory, "vae"), read_part_config(directory, "unet")
    blocks = len(vae["block_out_channels"]) + len(unet["block_out_channels"]) - 2
    return int(2**blocks)


def _read_default_side(directory: Path) -> int:
    sample_size = read_part_config(directory, "unet")["sample_size"] or SAMPLE_SIZE
    return int(sample_size) * compute_latent_factor(read_part_config(directory, "vae"))


def is_v2(directory: Path) -> bool:
    """Whether the text encoder is 2.x's open_clip, told by its activation, or 1.x's CLIP."""
    return bool(read_part_config(directory, "text_encoder")["hidden_act"] == "gelu")


def _name_architecture(directory: Path) -> str:
    return f"stable-diffusion-v{2 if is_v2(directory) else 1}"


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


def find_kohya_layer(part: str, layer: str) -> KohyaLayer | None:
    """As `KohyaNames.find`."""
    if not _KOHYA_LAYERS[part].fullmatch(layer):
        return None
    name = layer.removeprefix("text_model.").replace(".", "_")
    return KohyaLayer(f"{_KOHYA_PREFIXES[part]}{name}")


def _read_kohya_metadata(directory: Path) -> dict[str, str]:
    is_second = is_v2(directory)
    return {"ss_base_model_version": "sd_v2" if is_second else "sd_v1", "ss_v2": str(is_second)}


FAMILY = ModelFamily(
    name="stable-diffusion",
    title="Stable Diffusion 1.x and 2.x",
    pipeline_classes=PIPELINES,
    denoiser=Part("unet", "diffusers", "UNet2DConditionModel"),
    vae=Part("vae", "diffusers", "AutoencoderKL"),
    text_encoders=(
        TextEncoderPart("text_encoder", "transformers", "CLIPTextModel", can_train=True),
    ),
    process="diffusion",
    functions="dreambooth_ray.models.families.stable_diffusion_functions:StableDiffusionFunctions",
    check=check_directory,
    size_multiple=_read_size_multiple,
    default_side=_read_default_side,
    architecture=_name_architecture,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
    text_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
    features=frozenset(
        (
            "kv",
            "learned",
            "prompt_weights",
            "clip_skip",
            "deepcache",
            "image_to_image",
            "inpainting",
        )
    ),
    methods=("full", "lora", "kv"),
    export_formats=("diffusers", "lora", "kohya", "single-file"),
    kohya_names=KohyaNames(find_kohya_layer, _read_kohya_metadata),
    solvers=("ddim", "plms", "euler", "euler_a", "dpmpp_2m"),
)
