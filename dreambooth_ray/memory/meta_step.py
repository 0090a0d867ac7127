"""A training step on torch's meta device, where tensors have shapes and no bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.trainable_params import apply_method, is_trained


def count_step(config: Config, directory: Path, batch: int) -> dict[str, int]:
    """The size of a step of `batch` images: parameters `trained` and `frozen`, bytes `kept`.

    kept: bytes that autograd saves for the backward pass
    raises: OSError or ValueError where the directory's configuration files can't be read
    """
    parts = _build_meta_parts(directory)
    apply_method(config, parts)
    models = (parts.unet, parts.text_encoder, parts.vae)
    weights = [p for model in models for p in model.parameters()]
    return {
        "trained": sum(p.numel() for p in weights if p.requires_grad),
        "frozen": sum(p.numel() for p in weights if not p.requires_grad),
        "kept": _count_saved_bytes(config, parts, batch),
    }


def _build_meta_parts(directory: Path) -> Components:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(directory, subfolder="unet")
        )
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(directory, subfolder="vae"))
        text_encoder = CLIPTextModel(
            CLIPTextConfig.from_pretrained(directory, subfolder="text_encoder")
        )
    vae.requires_grad_(False)
    # Tokenizer and schedule need no memory worth counting.
    return Components(unet, vae, text_encoder, cast(CLIPTokenizer, None), cast(DDPMScheduler, None))


def _count_saved_bytes(config: Config, parts: Components, batch: int) -> int:
    """Bytes that autograd saves in one forward pass through the trained parts."""
    text_encoder: nn.Module = parts.text_encoder
    text_config = parts.text_encoder.config
    side = config.train.resolution // parts.latent_factor
    with torch.device("meta"):
        latents = torch.empty(batch, parts.unet.config.in_channels, side, side)
        timesteps = torch.zeros(batch, dtype=torch.int64)
        ids = torch.zeros(batch, text_config.max_position_embeddings, dtype=torch.int64)
        hidden = torch.empty(batch, text_config.max_position_embeddings, text_config.hidden_size)
    weights = {id(p) for model in (parts.unet, text_encoder) for p in model.parameters()}
    with _track_saved_bytes(weights) as saved_bytes:
        if is_trained(text_encoder):
            hidden = text_encoder(ids).last_hidden_state
        parts.unet(latents, timesteps, hidden).sample.square().mean()
    return sum(saved_bytes.values())


@contextmanager
def _track_saved_bytes(weights: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves inside the block, parameters left out."""
    saved_bytes: dict[int, int] = {}
    live_tensors: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in weights:
            # Referenced, so that no other tensor gets the same id.
            live_tensors.append(base)
            saved_bytes[id(base)] = base.numel() * base.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield saved_bytes
