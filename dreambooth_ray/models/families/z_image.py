"""Z-Image: one transformer over image and caption tokens, and Qwen3's hidden states as captions."""

from dataclasses import replace
from pathlib import Path

from dreambooth_ray.models.families.z_image_checks import MAX_TOKENS, PATCH, check_networks
from dreambooth_ray.models.families.z_image_names import find_kohya_layer, list_adapter_layer_names
from dreambooth_ray.models.family import ATTENTION_TARGETS, ModelFamily, Part, TextEncoderPart
from dreambooth_ray.models.flow_family import make_flow_family, read_latent_factor, read_vae_side
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.pipeline_checks import check_parts

# Of Z-Image-Turbo's scheduler: nothing else in its directory tells it from Z-Image, whose is 6.
_TURBO_SHIFT = 3.0


def _check_directory(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(directory)


def _choose_family_variant(directory: Path) -> ModelFamily:
    shift = read_json(directory / "scheduler" / "scheduler_config.json").get("shift", 1.0)
    return {_TURBO_SHIFT: TURBO, 1.0: SMALL}.get(shift, FAMILY)


FAMILY = make_flow_family(
    name="z-image",
    title="Z-Image",
    pipeline_classes=("ZImagePipeline",),
    denoiser=Part("transformer", "diffusers", "ZImageTransformer2DModel"),
    text_encoders=(
        TextEncoderPart(
            "text_encoder",
            "transformers",
            "Qwen3Model",
            ("Qwen3ForCausalLM",),
            tokenizer_class="Qwen2Tokenizer",
        ),
    ),
    functions="dreambooth_ray.models.families.z_image_functions:ZImageFunctions",
    check=_check_directory,
    size_multiple=lambda directory: read_latent_factor(directory) * PATCH,
    default_side=read_vae_side,
    architecture=lambda _: "z-image",
    lora_targets=ATTENTION_TARGETS,
    export_formats=("diffusers", "lora", "kohya"),
    kohya_names=KohyaNames(find_kohya_layer, lambda _: {}),
    list_adapter_layer_names=list_adapter_layer_names,
    features=frozenset(("image_to_image", "inpainting")),
    max_prompt_tokens=MAX_TOKENS,
    sampling_defaults={"solver": "euler", "num_inference_steps": 28, "guidance_scale": 5.0},
    choose_variant=_choose_family_variant,
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
