"""FLUX.1: a transformer of packed latents, T5's hidden states as text and CLIP's pooled one."""

from dataclasses import replace
from pathlib import Path

from dreambooth_ray.models.families.flux1_checks import (
    EMBEDS_GUIDANCE,
    MAX_TOKENS,
    PATCH,
    SCHNELL_MAX_TOKENS,
    check_networks,
)
from dreambooth_ray.models.families.flux1_names import find_kohya_layer, list_adapter_layer_names
from dreambooth_ray.models.family import (
    CLIP_TARGETS,
    ModelFamily,
    Part,
    make_clip_encoder_part,
    make_t5_encoder_part,
)
from dreambooth_ray.models.flow_family import make_flow_family, read_latent_factor, read_vae_side
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.pipeline_checks import check_parts

# As diffusers' script has them.
LORA_TARGETS = (
    "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj",
    "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2",
    "ff_context.net.0.proj", "ff_context.net.2",
)  # fmt: skip


def _choose_dev_or_schnell(directory: Path) -> ModelFamily:
    transformer_config = read_json(directory / "transformer" / "config.json")
    return FAMILY if transformer_config.get(EMBEDS_GUIDANCE) else SCHNELL


def _check(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(directory)


FAMILY = make_flow_family(
    name="flux1",
    title="FLUX.1 dev",
    pipeline_classes=("FluxPipeline",),
    denoiser=Part("transformer", "diffusers", "FluxTransformer2DModel"),
    text_encoders=(make_clip_encoder_part(), make_t5_encoder_part("_2")),
    functions="dreambooth_ray.models.families.flux1_functions:Flux1Functions",
    check=_check,
    size_multiple=lambda directory: read_latent_factor(directory) * PATCH,
    default_side=read_vae_side,
    architecture=lambda _: "flux-1-dev",
    lora_targets=LORA_TARGETS,
    text_lora_targets=CLIP_TARGETS,
    export_formats=("diffusers", "lora", "kohya"),
    kohya_names=KohyaNames(find_kohya_layer, lambda _: {"ss_base_model_version": "flux1"}),
    max_prompt_tokens=MAX_TOKENS,
    list_adapter_layer_names=list_adapter_layer_names,
    features=frozenset(("learned", "image_to_image", "inpainting")),
    embeds_guidance=True,
    sampling_defaults={"solver": "euler", "num_inference_steps": 28, "guidance_scale": 3.5},
    choose_variant=_choose_dev_or_schnell,
)
SCHNELL = replace(
    FAMILY,
    name="flux1-schnell",
    title="FLUX.1 schnell",
    architecture=lambda _: "flux-1-schnell",
    methods=(),
    instead="it is distilled, and training would undo that: train FLUX.1-dev, of its size",
    max_prompt_tokens=SCHNELL_MAX_TOKENS,
    has_guidance=False,
    embeds_guidance=False,
    sampling_defaults={"solver": "euler", "num_inference_steps": 4, "guidance_scale": 1.0},
)
