"""A Stable Diffusion 1.x or 2.x directory and its parts, whatever their sizes."""

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.resources import files
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

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.storage import layout

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


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
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def model_directory(uri: str, key: str = "model.uri") -> Path:
    """The directory of a model: 'toyworld' is the one that ships; a run stands for its bundle.

    key: the setting to name in an error
    raises: ConfigError naming what is missing
    """
    if uri == "toyworld":
        return Path(str(files("dreambooth_ray.toyworld") / "weights" / "pipeline"))
    folder = Path(uri).expanduser()
    if (folder / layout.CONFIG).is_file() and not (folder / "unet").is_dir():
        folder = folder / layout.BUNDLE
        if not folder.is_dir():
            raise ConfigError(
                f"{key}={uri!r} is a run without a bundle yet; finish it with `dreambooth resume`"
            )
    if not folder.is_dir():
        raise ConfigError(
            f"{key}={uri!r} is neither 'toyworld' nor a directory; give a run that `dreambooth "
            "train` printed, or a Stable Diffusion 1.x or 2.x directory in diffusers format"
        )
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ConfigError(
                f"{key}={uri!r} has no {part}/ in it; it must be a Stable Diffusion directory in "
                f"diffusers format, with {', '.join(PARTS)}"
            )
    return folder


def check_resolution(directory: Path, resolution: int) -> None:
    """raises ConfigError if a picture of that side can't pass the VAE and the UNet."""
    vae = json.loads((directory / "vae" / "config.json").read_text())
    unet = json.loads((directory / "unet" / "config.json").read_text())
    factor = 2 ** (len(vae["block_out_channels"]) - 1) * 2 ** (len(unet["block_out_channels"]) - 1)
    if resolution % factor:
        near = max(factor, round(resolution / factor) * factor)
        raise ConfigError(
            f"train.resolution={resolution} is not a multiple of {factor}, which this model "
            f"needs; try {near}"
        )


def model_hash(directory: Path) -> str:
    """SHA-256 over names and contents of every weight and configuration file of a model."""
    digest = hashlib.sha256()
    for path in sorted(p for part in PARTS for p in (directory / part).rglob("*") if p.is_file()):
        digest.update(path.relative_to(directory).as_posix().encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def quiet_libraries() -> None:
    """Keep warnings that no user can act on from between the progress lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def load_components(directory: Path) -> Components:
    """Load all parts in float32; the VAE frozen."""
    quiet_libraries()
    vae = AutoencoderKL.from_pretrained(directory, subfolder="vae", dtype=torch.float32)
    return Components(
        unet=UNet2DConditionModel.from_pretrained(directory, subfolder="unet", dtype=torch.float32),
        vae=vae.eval().requires_grad_(False),
        text_encoder=CLIPTextModel.from_pretrained(
            directory, subfolder="text_encoder", dtype=torch.float32
        ),
        tokenizer=CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer"),
        schedule=DDPMScheduler.from_pretrained(directory, subfolder="scheduler"),
    )


def load_pipeline(directory: Path) -> StableDiffusionPipeline:
    """diffusers' own pipeline over a directory, float32, without safety checker or bar."""
    quiet_libraries()
    pipeline = StableDiffusionPipeline.from_pretrained(
        directory, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
