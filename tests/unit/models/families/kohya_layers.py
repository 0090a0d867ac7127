"""Random adapters of a network's layers, by their names."""

from typing import Any

import torch

RANK = 2


def make_weights(layers: dict[str, list[int]], **options: Any) -> dict[str, torch.Tensor]:
    """layers: (height, width) of each; options: of `torch.randn`"""
    return {
        f"{layer}.lora_{letter}.weight": torch.randn(size, **options)
        for layer, (height, width) in layers.items()
        for letter, size in (("A", (RANK, width)), ("B", (height, RANK)))
    }
