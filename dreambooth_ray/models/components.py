"""Load the parts of a Stable Diffusion 1.x or 2.x directory, of any size."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dreambooth_ray.errors import ConfigError, DreamBoothError, StorageError
from dreambooth_ray.models import lora, tokens
from dreambooth_ray.models.model_directory import (
    adapted_base,
    base_directory,
    compute_latent_factor,
    model_directory,
)
from dreambooth_ray.models.part_configs import read_part_config
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.storage import paths

_PROCESSOR = "feature_extractor"
# Of files that a person has to mend; the rest a disk may recover from.
_PERMANENT_ERRNOS = (
    None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EINVAL,
)  # fmt: skip


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
    """Load all parts in float32; the VAE frozen. Adapters are fused into their base.

    raises: ConfigError naming the part whose files are damaged, missing or of another model,
        StorageError where the disk they are on does not answer
    """
    quiet_libraries()
    if base := adapted_base(directory):
        parts = load_components(model_directory(base[0]))
        parts.unet, parts.text_encoder = _fuse_adapters(
            parts.unet, parts.text_encoder, parts.tokenizer, directory
        )
        if (directory / paths.ADAPTER_SCHEDULER).is_dir():
            parts.schedule = DDPMScheduler.from_pretrained(directory / paths.ADAPTER_SCHEDULER)
        return parts
    text_encoder = _load_part(CLIPTextModel, directory, "text_encoder")
    return Components(
        unet=_load_part(UNet2DConditionModel, directory, "unet"),
        vae=_load_part(AutoencoderKL, directory, "vae").eval().requires_grad_(False),
        text_encoder=text_encoder,
        tokenizer=_load_tokenizer(directory, text_encoder.config.max_position_embeddings),
        schedule=DDPMScheduler.from_pretrained(directory, subfolder="scheduler"),
    )


def _load_part(network_class: type[Any], directory: Path, part: str) -> Any:
    """A network from the files that `find_weights` names, in float32."""
    with explained_loading(directory / part):
        files = find_weights(directory / part, part)
        network, info = network_class.from_pretrained(
            directory,
            subfolder=part,
            variant=files.variant,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        # Libraries fill these with random numbers, or leave them out, and go on.
        for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
            if names := sorted(map(str, info.get(kind, ()))):
                raise ValueError(f"{kind.replace('_', ' ')}: {names[0]} and {len(names) - 1} more")
    return network


def _load_tokenizer(directory: Path, max_length: int) -> CLIPTokenizer:
    """max_length: positions of the text encoder, which some tokenizers do not know of."""
    with explained_loading(directory / "tokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer")
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    return tokenizer


@contextmanager
def explained_loading(folder: Path) -> Iterator[None]:
    """Raise a library's errors inside the block in our own words, naming the folder.

    raises: ConfigError where its files are at fault, StorageError where the disk may recover
    """
    try:
        yield
    except DreamBoothError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        text = " ".join(str(error).split())[:300]
        if isinstance(error, MemoryError) or "allocate memory" in text:
            raise
        # Libraries raise OSError without a number for files that they miss.
        if isinstance(error, OSError) and error.errno not in _PERMANENT_ERRNOS:
            raise StorageError(f"{folder} can't be read: {text}; try again") from error
        raise ConfigError(
            f"{folder} can't be loaded: {text}; copy the model directory again"
        ) from error


def load_pipeline(directory: Path) -> StableDiffusionPipeline:
    """diffusers' own pipeline over a directory, float32, without safety checker or bar.

    Adapters are fused into their base.
    """
    return build_pipeline(load_components(directory), directory)


def build_pipeline(parts: Components, directory: Path) -> StableDiffusionPipeline:
    """diffusers' own pipeline of loaded parts, with the scheduler of the directory they are from.

    An image processor is taken along where there is one; only safety checkers need it.
    """
    base = base_directory(directory)
    with explained_loading(base / "scheduler"):
        scheduler_name = read_part_config(base, "scheduler").get("_class_name", "DDPMScheduler")
        scheduler_class: Any = getattr(diffusers, scheduler_name, DDPMScheduler)
        scheduler = scheduler_class.from_pretrained(base, subfolder="scheduler")
    if (directory / paths.ADAPTER_SCHEDULER).is_dir():
        scheduler = DDIMScheduler.from_config(parts.schedule.config)
    has_processor = (base / _PROCESSOR / "preprocessor_config.json").is_file()
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=(
            CLIPImageProcessor.from_pretrained(base, subfolder=_PROCESSOR)
            if has_processor
            else None
        ),
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
