"""Chroma: FLUX.1's transformer without CLIP, told the time alone; T5's hidden states as text."""

from pathlib import Path

from dreambooth_ray.models.families.chroma_checks import check_networks
from dreambooth_ray.models.families.flux1 import LORA_TARGETS
from dreambooth_ray.models.families.flux1_checks import MAX_TOKENS, PATCH
from dreambooth_ray.models.families.flux1_names import find_kohya_layer
from dreambooth_ray.models.family import Part, make_t5_encoder_part
from dreambooth_ray.models.flow_family import make_flow_family, read_latent_factor, read_vae_side
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.pipeline_checks import check_parts


def _check(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(directory)


FAMILY = make_flow_family(
    name="chroma",
    title="Chroma",
    pipeline_classes=("ChromaPipeline",),
    denoiser=Part("transformer", "diffusers", "ChromaTransformer2DModel"),
    text_encoders=(make_t5_encoder_part(""),),
    functions="dreambooth_ray.models.families.chroma_functions:ChromaFunctions",
    check=_check,
    size_multiple=lambda directory: read_latent_factor(directory) * PATCH,
    default_side=read_vae_side,
    architecture=lambda _: "chroma",
    # diffusers has no script for it: FLUX.1's.
    lora_targets=LORA_TARGETS,
    export_formats=("diffusers", "lora", "kohya"),
    kohya_names=KohyaNames(find_kohya_layer, lambda _: {}),
    features=frozenset(("image_to_image", "inpainting")),
    max_prompt_tokens=MAX_TOKENS,
    sampling_defaults={"solver": "euler", "num_inference_steps": 35, "guidance_scale": 5.0},
)
