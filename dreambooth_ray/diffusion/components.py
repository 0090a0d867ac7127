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

from dreambooth_ray.diffusion import adapters, tokens
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.manifest import MANIFEST

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTED = ("unet", "vae", "text_encoder")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


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
    if base := adapted_base(folder):
        return _checked_adapter(folder, *base, key)
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ConfigError(
                f"{key}={uri!r} has no {part}/ in it; it must be a Stable Diffusion directory in "
                f"diffusers format, with {', '.join(PARTS)}"
            )
    for part in WEIGHTED:
        _refuse_pickles(folder / part, key)
    return folder


def _refuse_pickles(folder: Path, key: str) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    what = (
        f"{pickled[0]} alone, a pickle, which can run code when read" if pickled else "no weights"
    )
    raise ConfigError(
        f"{key}: {folder} holds {what}; weights are read from safetensors alone: write them anew "
        "with diffusers' save_pretrained(..., safe_serialization=True)"
    )


def adapted_base(folder: Path) -> tuple[str, str] | None:
    """Of an adapter bundle, its base model's URI and hash; None for any other folder."""
    if not (folder / layout.ADAPTER).is_dir():
        return None
    try:
        about = json.loads((folder / MANIFEST).read_text())["about"]
        return str(about["base_model"]), str(about["base_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} has an {layout.ADAPTER}/ and no {MANIFEST} that names its base model "
            f"({error}); export the run again"
        ) from error


def _checked_adapter(folder: Path, uri: str, digest: str, key: str) -> Path:
    try:
        base = model_directory(uri, key)
    except ConfigError as error:
        raise ConfigError(
            f"{key}: {folder} adapts the model {uri!r}, which can't be used: {error}"
        ) from error
    if model_hash(base) != digest:
        raise ConfigError(
            f"{key}: {folder} adapts {uri!r} as it was when trained, and that model has changed "
            "since; bring the old one back, or train again"
        )
    return folder


def base_directory(directory: Path) -> Path:
    """The directory that holds all parts: a model's own, or that of an adapter's base."""
    base = adapted_base(directory)
    return base_directory(model_directory(base[0])) if base else directory


def check_resolution(directory: Path, resolution: int) -> None:
    """raises ConfigError if a picture of that side can't pass the VAE and the UNet."""
    directory = base_directory(directory)
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
    """SHA-256 over names and contents of every weight and configuration file of a model.

    Of an adapter bundle: over its base's hash and the adapter's files.
    """
    digest = hashlib.sha256()
    base = adapted_base(directory)
    if base:
        digest.update(base[1].encode())
    parts = (layout.ADAPTER,) if base else PARTS
    for path in sorted(p for part in parts for p in (directory / part).rglob("*") if p.is_file()):
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
    """Load all parts in float32; the VAE frozen. Adapters are fused into their base."""
    quiet_libraries()
    if base := adapted_base(directory):
        parts = load_components(model_directory(base[0]))
        parts.unet, parts.text_encoder = _adapt(
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
        pipeline.unet, pipeline.text_encoder = _adapt(
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


def _adapt(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    bundle: Path,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    folder = bundle / layout.ADAPTER
    if (folder / "unet").is_dir():
        unet = adapters.fuse(unet, folder / "unet")
    if (folder / "text_encoder").is_dir():
        text_encoder = adapters.fuse(text_encoder, folder / "text_encoder")
    if words := tokens.read(folder):
        tokens.add(tokenizer, text_encoder, words)
    return unet, text_encoder
