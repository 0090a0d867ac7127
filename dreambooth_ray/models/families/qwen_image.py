"""Qwen-Image: a transformer of packed latents, Qwen2.5-VL's hidden states as text."""

from pathlib import Path

from dreambooth_ray.models.families.qwen_image_checks import MAX_TOKENS, PATCH, check_networks
from dreambooth_ray.models.families.qwen_image_names import find_kohya_layer
from dreambooth_ray.models.family import ATTENTION_TARGETS, Part, TextEncoderPart
from dreambooth_ray.models.flow_family import make_flow_family
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.pipeline_checks import check_parts
from dreambooth_ray.models.qwen_vae_checks import compute_qwen_vae_factor, read_qwen_vae

# No file names it: the pipeline's own default.
SIDE = 1024


def _read_size_multiple(directory: Path) -> int:
    return compute_qwen_vae_factor(read_qwen_vae(directory / "vae")) * PATCH


def _check_directory(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(directory)


FAMILY = make_flow_family(
    name="qwen-image",
    title="Qwen-Image",
    pipeline_classes=("QwenImagePipeline",),
    denoiser=Part("transformer", "diffusers", "QwenImageTransformer2DModel"),
    vae=Part("vae", "diffusers", "AutoencoderKLQwenImage"),
    text_encoders=(
        TextEncoderPart(
            "text_encoder",
            "transformers",
            "Qwen2_5_VLForConditionalGeneration",
            tokenizer_class="Qwen2Tokenizer",
            overflows=True,
        ),
    ),
    functions="dreambooth_ray.models.families.qwen_image_functions:QwenImageFunctions",
    check=_check_directory,
    size_multiple=_read_size_multiple,
    default_side=lambda _: SIDE,
    architecture=lambda _: "Qwen-Image",
    # As diffusers' script has them: the image's attention alone.
    lora_targets=ATTENTION_TARGETS,
    export_formats=("diffusers", "lora", "kohya"),
    kohya_names=KohyaNames(find_kohya_layer, lambda _: {}),
    features=frozenset(("image_to_image", "inpainting")),
    max_prompt_tokens=MAX_TOKENS,
    sampling_defaults={"solver": "euler", "num_inference_steps": 50, "guidance_scale": 4.0},
)
