"""Load the parts of a Stable Diffusion 1.x or 2.x directory, of any size."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dreambooth_ray.models import lora, tokens
from dreambooth_ray.models.source import adapted_base, compute_latent_factor, model_directory
from dreambooth_ray.storage import paths


@dataclass
class Components:
    """The parts that training touches, in float32. schedule is the forward process."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    schedule: DDPMScheduler

    @property
    def latent_factor(self) -> int:
        """Pixels a latent spans, each way."""
        return compute_latent_factor(self.vae.config)


def quiet_libraries() -> None:
    """Silence library warnings that no user can act on."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    # It tells at each import which of its kernels this machine can't load.
    logging.getLogger("torchao").setLevel(logging.ERROR)


def load_components(directory: Path) -> Components:
    """Load all parts in float32; the VAE frozen. Adapters are fused into their base."""
    quiet_libraries()
    if base := adapted_base(directory):
        parts = load_components(model_directory(base[0]))
        parts.unet, parts.text_encoder = _fuse_adapters(
            parts.unet, parts.text_encoder, parts.tokenizer, directory
        )
        return parts
    weights = {"dtype": torch.float32, "use_safetensors": True}
    vae = AutoencoderKL.from_pretrained(directory, subfolder="vae", **weights)
    return Components(
        unet=UNet2DConditionModel.from_pretrained(directory, subfolder="unet", **weights),
        vae=vae.eval().requires_grad_(False),
        text_encoder=CLIPTextModel.from_pretrained(
            directory, subfolder="text_encoder", dtype=torch.float32, use_safetensors=True
        ),
        tokenizer=CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer"),
        schedule=DDPMScheduler.from_pretrained(directory, subfolder="scheduler"),
    )


def load_pipeline(directory: Path) -> StableDiffusionPipeline:
    """diffusers' own pipeline over a directory, float32, without safety checker or bar.

    Adapters are fused into their base.
    """
    quiet_libraries()
    if base := adapted_base(directory):
        pipeline = load_pipeline(model_directory(base[0]))
        pipeline.unet, pipeline.text_encoder = _fuse_adapters(
            pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, directory
        )
        return pipeline
    pipeline = StableDiffusionPipeline.from_pretrained(
        directory,
        dtype=torch.float32,
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fuse_adapters(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    bundle: Path,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    folder = bundle / paths.ADAPTER
    if (folder / "unet").is_dir():
        unet = lora.fuse_adapters(unet, folder / "unet")
    if (folder / "text_encoder").is_dir():
        text_encoder = lora.fuse_adapters(text_encoder, folder / "text_encoder")
    if words := tokens.load_words(folder):
        tokens.add_words(tokenizer, text_encoder, words)
    return unet, text_encoder
