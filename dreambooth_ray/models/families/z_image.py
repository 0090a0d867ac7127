"""Z-Image: one transformer over image and caption tokens, and Qwen3's hidden states as captions."""

from dataclasses import replace
from pathlib import Path

from dreambooth_ray.models.families.z_image_checks import MAX_TOKENS, PATCH, check_networks
from dreambooth_ray.models.families.z_image_names import find_kohya_layer
from dreambooth_ray.models.family import ModelFamily, Part, TextEncoderPart
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.part_configs import read_json, read_part_config
from dreambooth_ray.models.pipeline_checks import check_parts

# Of Z-Image-Turbo's scheduler: nothing else in its directory tells it from Z-Image, whose is 6.
_TURBO_SHIFT = 3.0
_SIDE = 1024  # where the VAE's configuration names none


def _read_size_multiple(directory: Path) -> int:
    return compute_latent_factor(read_part_config(directory, "vae")) * PATCH


def _read_default_side(directory: Path) -> int:
    return int(read_json(directory / "vae" / "config.json").get("sample_size", _SIDE))


def _check(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(directory)


def _choose_variant(directory: Path) -> ModelFamily:
    shift = read_json(directory / "scheduler" / "scheduler_config.json").get("shift", 1.0)
    return {_TURBO_SHIFT: TURBO, 1.0: SMALL}.get(shift, FAMILY)


FAMILY = ModelFamily(
    name="z-image",
    title="Z-Image",
    pipeline_classes=("ZImagePipeline",),
    denoiser=Part("transformer", "diffusers", "ZImageTransformer2DModel"),
    vae=Part("vae", "diffusers", "AutoencoderKL"),
    text_encoders=(
        TextEncoderPart(
            "text_encoder",
            "transformers",
            "Qwen3Model",
            ("Qwen3ForCausalLM",),
            tokenizer_class="Qwen2Tokenizer",
        ),
    ),
    process="flow",
    functions="dreambooth_ray.models.families.z_image_functions:ZImageFunctions",
    check=_check,
    size_multiple=_read_size_multiple,
    default_side=_read_default_side,
    architecture=lambda _: "z-image",
    lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
    solvers=("euler", "heun", "dpmpp_2m"),
    export_formats=("diffusers", "lora", "kohya"),
    kohya_names=KohyaNames(find_kohya_layer, lambda _: {}),
    features=frozenset(("image_to_image", "inpainting")),
    max_prompt_tokens=MAX_TOKENS,
    half_dtype="bfloat16",
    sampling_defaults={"solver": "euler", "num_inference_steps": 28, "guidance_scale": 5.0},
    choose_variant=_choose_variant,
)
# Distilled: eight steps without guidance.
TURBO = replace(
    FAMILY,
    name="z-image-turbo",
    title="Z-Image-Turbo",
    methods=(),
    instead=(
        "it is distilled, and training would undo that: train Z-Image, whose adapters it takes; "
        "the scheduler's shift, 3 or 6, tells the two apart"
    ),
    sampling_defaults={"solver": "euler", "num_inference_steps": 8, "guidance_scale": 1.0},
)
# Levels that are not shifted are of small images, such as the toy world's.
SMALL = replace(FAMILY, sampling_defaults={"solver": "euler"})
