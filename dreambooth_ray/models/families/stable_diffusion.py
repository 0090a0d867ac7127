"""Stable Diffusion 1.x and 2.x: a UNet, and CLIP's text encoder."""

from pathlib import Path

from dreambooth_ray.models.directory_checks import PIPELINES, check_directory
from dreambooth_ray.models.family import ModelFamily, Part, TextEncoderPart
from dreambooth_ray.models.part_configs import read_part_config


def _read_size_multiple(directory: Path) -> int:
    """The UNet halves latents at every block but the last."""
    vae, unet = read_part_config(directory, "vae"), read_part_config(directory, "unet")
    blocks = len(vae["block_out_channels"]) + len(unet["block_out_channels"]) - 2
    return int(2**blocks)


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
    solvers=("ddim", "plms", "euler", "euler_a", "dpmpp_2m"),
)
