"""What all FLUX.2 say of themselves alike. Nothing heavy is imported."""

from functools import partial
from pathlib import Path
from typing import Any

from dreambooth_ray.models.families.flux2_checks import MAX_TOKENS, PATCH, VAE_DEFAULTS
from dreambooth_ray.models.families.flux2_names import find_kohya_layer, list_adapter_layer_names
from dreambooth_ray.models.family import Part
from dreambooth_ray.models.flow_family import make_flow_family
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.part_configs import read_json


def _read_vae_config(directory: Path) -> dict[str, Any]:
    return VAE_DEFAULTS | read_json(directory / "vae" / "config.json")


# A family of FLUX.2; takes the rest of a `ModelFamily`.
make_flux2_family = partial(
    make_flow_family,
    denoiser=Part("transformer", "diffusers", "Flux2Transformer2DModel"),
    vae=Part("vae", "diffusers", "AutoencoderKLFlux2"),
    size_multiple=lambda directory: compute_latent_factor(_read_vae_config(directory)) * PATCH,
    default_side=lambda directory: int(_read_vae_config(directory)["sample_size"]),
    # As diffusers' scripts have them: of the blocks with two streams the image's attention alone.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "attn.to_out"),
    export_formats=("diffusers", "lora", "kohya"),
    kohya_names=KohyaNames(find_kohya_layer, lambda _: {}),
    list_adapter_layer_names=list_adapter_layer_names,
    max_prompt_tokens=MAX_TOKENS,
    sampling_defaults={"solver": "euler", "num_inference_steps": 50, "guidance_scale": 4.0},
)
