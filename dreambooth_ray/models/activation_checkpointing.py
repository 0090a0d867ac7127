"""Activations that are computed twice instead of held (Chen et al. 2016, arXiv 1604.06174)."""

from collections.abc import Iterable
from typing import Any


def checkpoint_activations(denoiser: Any, text_encoders: Iterable[Any]) -> None:
    """Keep only the inputs of blocks for the backward, in place; works in training mode."""
    denoiser.enable_gradient_checkpointing()
    for text_encoder in text_encoders:
        text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
