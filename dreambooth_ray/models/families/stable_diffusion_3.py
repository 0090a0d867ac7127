"""Stable Diffusion 3 and 3.5: a transformer of two streams, two of CLIP's encoders and a T5."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_ray.models.families.stable_diffusion_3_checks import check_networks
from dreambooth_ray.models.families.stable_diffusion_3_names import list_adapter_layer_names
from dreambooth_ray.models.family import (
    CLIP_TARGETS,
    INDEX,
    ModelFamily,
    Part,
    make_clip_encoder_part,
    make_t5_encoder_part,
)
from dreambooth_ray.models.flow_family import make_flow_family, read_latent_factor
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.pipeline_checks import check_parts

T5 = "text_encoder_3"
# The pipeline's default.
T5_TOKENS = 256
# Of SD3Transformer2DModel, where a configuration names none.
_PATCH, _SAMPLE_SIZE, _PLACES = 2, 128, 96


def _read_transformer_config(directory: Path) -> dict[str, Any]:
    return read_json(directory / "transformer" / "config.json")


def _read_size_multiple(directory: Path) -> int:
    patch_size = int(_read_transformer_config(directory).get("patch_size", _PATCH))
    return read_latent_factor(directory) * patch_size


def _read_default_side(directory: Path) -> int:
    sample_size = int(_read_transformer_config(directory).get("sample_size", _SAMPLE_SIZE))
    return read_latent_factor(directory) * sample_size


def _read_max_side(directory: Path) -> int:
    max_patches = int(_read_transformer_config(directory).get("pos_embed_max_size", _PLACES))
    return _read_size_multiple(directory) * max_patches


def _name_architecture(directory: Path) -> str:
    """As sd-scripts name them."""
    config = _read_transformer_config(directory)
    if not config.get("qk_norm"):
        return "stable-diffusion-3-m"
    return f"stable-diffusion-3-5-{'medium' if config.get('dual_attention_layers') else 'large'}"


def _choose_t5_variant(directory: Path) -> ModelFamily:
    model_index = read_json(directory / INDEX)
    return WITHOUT_T5 if model_index.get(T5) == [None, None] else FAMILY


def _check_directory(directory: Path) -> None:
    family = _choose_t5_variant(directory)
    check_parts(directory, family)
    check_networks(directory, has_t5=family is FAMILY)


_CLIP_ENCODERS = tuple(make_clip_encoder_part("CLIPTextModelWithProjection", k) for k in ("", "_2"))
FAMILY = make_flow_family(
    name="stable-diffusion-3",
    title="Stable Diffusion 3 and 3.5",
    pipeline_classes=(
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
    ),
    denoiser=Part("transformer", "diffusers", "SD3Transformer2DModel"),
    text_encoders=(*_CLIP_ENCODERS, make_t5_encoder_part("_3")),
    functions=(
        "dreambooth_ray.models.families.stable_diffusion_3_functions:StableDiffusion3Functions"
    ),
    check=_check_directory,
    choose_variant=_choose_t5_variant,
    size_multiple=_read_size_multiple,
    default_side=_read_default_side,
    max_side=_read_max_side,
    architecture=_name_architecture,
    # As diffusers' script has them: both streams, without 3.5's second attention.
    list_adapter_layer_names=list_adapter_layer_names,
    lora_targets=(
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    ),
    text_lora_targets=CLIP_TARGETS,
    max_prompt_tokens=T5_TOKENS,
    features=frozenset(("image_to_image", "inpainting")),
    text_function_has_one_output=False,
    sampling_defaults={"solver": "euler", "num_inference_steps": 28, "guidance_scale": 7.0},
    loss_defaults={"timesteps": "logit_normal"},
)  # fmt: skip
WITHOUT_T5 = replace(FAMILY, text_encoders=_CLIP_ENCODERS, max_prompt_tokens=None)
