"""Stable Diffusion 3 for dreambooth_ray. Nothing heavy is imported: every command reads it."""

from pathlib import Path
from typing import Any

from dreambooth_ray.models.empty_network_checks import check_networks
from dreambooth_ray.models.family import ModelFamily, Part, TextEncoderPart, make_t5_encoder_part
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.pipeline_checks import check_parts

NUM_TOKENS = 256  # of T5
PATCH = 2  # latents that the transformer takes as one, each way


def _check(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(directory, FAMILY)


def _read(directory: Path, part: str) -> dict[str, Any]:
    return read_json(directory / part / "config.json")


def _read_side(directory: Path) -> int:
    side = int(_read(directory, "transformer")["sample_size"])
    return side * compute_latent_factor(_read(directory, "vae"))


def _clip(number: str) -> TextEncoderPart:
    return TextEncoderPart(
        f"text_encoder{number}",
        "transformers",
        "CLIPTextModelWithProjection",
        tokenizer=f"tokenizer{number}",
    )


FAMILY = ModelFamily(
    name="sd3",
    title="Stable Diffusion 3",
    pipeline_classes=("StableDiffusion3Pipeline",),
    denoiser=Part("transformer", "diffusers", "SD3Transformer2DModel"),
    text_encoders=(_clip(""), _clip("_2"), make_t5_encoder_part("_3")),
    process="flow",
    functions="dreambooth_sd3.functions:StableDiffusion3Functions",
    check=_check,
    size_multiple=lambda d: compute_latent_factor(_read(d, "vae")) * PATCH,
    default_side=_read_side,
    architecture=lambda _: "stable-diffusion-v3-medium",
    # As diffusers' script has them.
    lora_targets=(
        *(f"attn.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
        *(f"attn.add_{layer}_proj" for layer in "qkv"),
    ),
    max_prompt_tokens=NUM_TOKENS,
    solvers=("euler", "heun", "dpmpp_2m"),
    sampling_defaults={"solver": "euler", "num_inference_steps": 28, "guidance_scale": 7.0},
)
