"""Activations that are computed twice instead of held (Chen et al. 2016, arXiv 1604.06174)."""

from typing import cast

from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel


def checkpoint_activations(unet: UNet2DConditionModel, text_encoder: nn.Module | None) -> None:
    """Keep only the inputs of blocks for the backward, in place; works in training mode."""
    unet.enable_gradient_checkpointing()
    if text_encoder is not None:
        cast(CLIPTextModel, text_encoder).gradient_checkpointing_enable({"use_reentrant": False})
