"""What an engine's latents are held against: each family's own pipeline of diffusers, called live.

guidance is the classic scale of all families, 1 is none: here it is made what a pipeline takes. Of
FLUX.1 it is what the network is told.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth_ray.bundles.read_back import find_parts_to_skip_loading
from dreambooth_ray.models.components import load_tokenizer
from dreambooth_ray.models.family import find_family

PIPELINE_STEPS = (4, 10, 25)  # that an engine is held against
# Whose latents are tokens of patches.
_PACKED = ("FluxPipeline", "QwenImagePipeline", "ChromaPipeline", "Krea2Pipeline")


@functools.lru_cache(maxsize=4)
def load_pipeline(directory: Path) -> Any:
    """The pipeline that model_index.json names, in float32 on the CPU; a directory is read once."""
    pipeline = read_pipeline(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_pipeline(directory: Path) -> Any:
    """As `load_pipeline`, anew. Of a processor that wants torchvision its tokenizer is read."""
    unread = find_parts_to_skip_loading(directory)
    pipeline = DiffusionPipeline.from_pretrained(
        directory, torch_dtype=torch.float32, local_files_only=True, **unread
    )
    for part in find_family(directory).text_encoders:
        if getattr(pipeline, part.tokenizer) is None:
            tokenizer = load_tokenizer(directory, part.tokenizer, part.tokenizer_class)
            setattr(pipeline, part.tokenizer, tokenizer)
    return pipeline


def initial_latents(pipeline: Any, seed: int, size: tuple[int, int]) -> Tensor:
    """Noise in the shape that the pipeline takes as `latents`; size: width and height in pixels."""
    name = type(pipeline).__name__
    width, height = (pixels // pipeline.vae_scale_factor for pixels in size)
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    channels = denoiser.config.in_channels
    if name in _PACKED:
        channels //= 4  # of patches of two by two
    if name.startswith("Flux2"):
        width, height = width // 2, height // 2
    shape = (1, channels, height, width)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return pack_flux1(noise) if name in _PACKED else noise


def pack_flux1(latents: Tensor) -> Tensor:
    """(B, C, h, w) latents as pipelines of _PACKED have them, patches: (B, h w / 4, 4 C)."""
    return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def pipeline_latents(
    directory: Path,
    prompt: str,
    negative_prompt: str | None = None,
    latents: Tensor | None = None,
    steps: int = 4,
    guidance: float = 1.0,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Latents at the end, as the pipeline's `output_type="latent"` gives them.

    latents: initial ones, of unit variance; without, those of `initial_latents` and `seed`
    negative_prompt: None is whatever the pipeline takes then (zeros for SDXL, "" for others)
    options: further arguments of the pipeline's call, as `cfg_normalization`
    raises: ValueError for a negative prompt where the pipeline has none
    """
    pipeline = load_pipeline(directory)
    name = type(pipeline).__name__
    if latents is None:
        latents = initial_latents(pipeline, seed, size)
    arguments = {"guidance_scale": guidance, "negative_prompt": negative_prompt} | options
    if name in ("ZImagePipeline", "Krea2Pipeline"):  # positive + scale * (positive - negative)
        arguments["guidance_scale"] = guidance - 1
    if name == "SanaPipeline":
        arguments["negative_prompt"] = negative_prompt or ""
    if name == "QwenImagePipeline":  # whose guidance_scale is of models that are told it
        del arguments["guidance_scale"]
        arguments |= {"true_cfg_scale": guidance, "negative_prompt": negative_prompt or ""}
    if "Flux" in name and arguments.pop("negative_prompt"):
        raise ValueError(f"{name} has no negative prompt")
    told: dict[str, Any] = {"prompt": prompt}
    if name == "ChromaPipeline":
        told = encode_for_chroma(pipeline, prompt, arguments.pop("negative_prompt") or "")
    images: Tensor = pipeline(
        **told,
        num_inference_steps=steps,
        width=size[0],
        height=size[1],
        latents=latents,
        output_type="latent",
        **arguments,
    ).images
    return images


def encode_for_chroma(pipeline: Any, prompt: str, negative_prompt: str) -> dict[str, Tensor]:
    """Both prompts as ChromaPipeline embeds them, with masks that mask.

    Its own are numbers, which attention adds to what it compares: padding is seen then, which the
    authors' code leaves out (huggingface/diffusers#12116).
    """
    hidden, _, mask, negative, _, negative_mask = pipeline.encode_prompt(
        prompt, negative_prompt, device=torch.device("cpu")
    )
    return {
        "prompt_embeds": hidden,
        "prompt_attention_mask": mask.bool(),
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": negative_mask.bool(),
    }
