"""Stable Diffusion 1.x and 2.x: a UNet, and CLIP's text encoder."""

from pathlib import Path

from dreambooth_ray.models.directory_checks import PIPELINES, check_directory
from dreambooth_ray.models.family import ModelFamily, Part, TextEncoderPart
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
    solvers=("ddim", "plms", "euler", "euler_a", "dpmpp_2m"),
)
