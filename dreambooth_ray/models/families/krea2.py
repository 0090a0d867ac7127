"""Krea 2: a transformer of one stream of packed latents, and many layers of a Qwen3-VL as text."""

from dataclasses import replace
from pathlib import Path

from dreambooth_ray.models.families.krea2_checks import (
    IS_DISTILLED,
    MAX_TOKENS,
    PATCH,
    check_networks,
)
from dreambooth_ray.models.families.krea2_names import list_adapter_layer_names
from dreambooth_ray.models.family import INDEX, ModelFamily, Part, TextEncoderPart
from dreambooth_ray.models.flow_family import make_flow_family
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.pipeline_checks import check_parts
from dreambooth_ray.models.qwen_vae_checks import compute_qwen_vae_factor, read_qwen_vae

# No file names it: the pipeline's own default.
SIDE = 1024


def _choose_family_variant(directory: Path) -> ModelFamily:
    return TURBO if read_json(directory / INDEX).get(IS_DISTILLED) else FAMILY


def _check_directory(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(directory)


FAMILY = make_flow_family(
    name="krea2",
    title="Krea 2",
    pipeline_classes=("Krea2Pipeline",),
    denoiser=Part("transformer", "diffusers", "Krea2Transformer2DModel"),
    vae=Part("vae", "diffusers", "AutoencoderKLQwenImage"),
    text_encoders=(
        TextEncoderPart(
            "text_encoder",
            "transformers",
            "Qwen3VLModel",
            wider_classes=("Qwen3VLForConditionalGeneration",),
            tokenizer_class="Qwen2Tokenizer",
        ),
    ),
    functions="dreambooth_ray.models.families.krea2_functions:Krea2Functions",
    check=_check_directory,
    size_multiple=lambda directory: compute_qwen_vae_factor(read_qwen_vae(directory / "vae"))
    * PATCH,
    default_side=lambda _: SIDE,
    architecture=lambda _: "krea2",
    # As diffusers' script has them, and Krea's authors: what fuses text, and the ends, among them.
    lora_targets=(
        "img_in", "final_layer.linear", "to_q", "to_k", "to_v", "to_out.0", "to_gate", "ff.up",
        "ff.down", "text_fusion.projector", "txt_in.linear_1", "txt_in.linear_2",
        "time_embed.linear_1", "time_embed.linear_2", "time_mod_proj",
    ),
    narrow_layers=("text_fusion.projector",),  # whose output is one number
    list_adapter_layer_names=list_adapter_layer_names,
    max_prompt_tokens=MAX_TOKENS,
    sampling_defaults={"solver": "euler", "num_inference_steps": 28, "guidance_scale": 5.5},
    choose_variant=_choose_family_variant,
)  # fmt: skip
TURBO = replace(
    FAMILY,
    name="krea2-turbo",
    title="Krea 2 Turbo",
    methods=(),
    instead="it is distilled, and training would undo that: train Krea-2-Raw, and sample its "
    "adapters over Turbo",
    sampling_defaults={"solver": "euler", "num_inference_steps": 8, "guidance_scale": 1.0},
)
