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


def count(config: Config, directory: Path, batch: int) -> dict[str, int]:
    """What a step of `batch` images takes: parameters `trained` and `frozen`, bytes `kept`.

    kept: by autograd for the backward pass, added up as it is kept
    raises: OSError or ValueError where the directory's configuration files can't be read
    """
    parts = _meta_parts(directory)
    apply_method(config, parts)
    models = (parts.unet, parts.text_encoder, parts.vae)
    weights = [p for model in models for p in model.parameters()]
    return {
        "trained": sum(p.numel() for p in weights if p.requires_grad),
        "frozen": sum(p.numel() for p in weights if not p.requires_grad),
        "kept": _kept(config, parts, batch),
    }


def _meta_parts(directory: Path) -> Components:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(directory, subfolder="unet")
        )
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(directory, subfolder="vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(directory, subfolder="text_encoder"))
    vae.requires_grad_(False)
    # Neither tokenizer nor schedule has a part in memory.
    return Components(unet, vae, text, cast(CLIPTokenizer, None), cast(DDPMScheduler, None))


def _kept(config: Config, parts: Components, batch: int) -> int:
    """Bytes that autograd keeps of one forward pass through what is trained."""
    text: nn.Module = parts.text_encoder
    settings = parts.text_encoder.config
    side = config.train.resolution // parts.latent_factor
    with torch.device("meta"):
        latents = torch.empty(batch, parts.unet.config.in_channels, side, side)
        steps = torch.zeros(batch, dtype=torch.int64)
        ids = torch.zeros(batch, settings.max_position_embeddings, dtype=torch.int64)
        hidden = torch.empty(batch, settings.max_position_embeddings, settings.hidden_size)
    weights = {id(p) for model in (parts.unet, text) for p in model.parameters()}
    with _kept_bytes(weights) as kept:
        if is_trained(text):
            hidden = text(ids).last_hidden_state
        parts.unet(latents, steps, hidden).sample.square().mean()
    return sum(kept.values())


@contextmanager
def _kept_bytes(weights: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves inside the block, parameters left out."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in weights:
            # Kept alive, so that no other tensor takes over its identity.
            alive.append(base)
            kept[id(base)] = base.numel() * base.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield kept
