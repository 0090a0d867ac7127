"""Of peft: in which modules of a network it keeps adapters, and what it calls their weights.

Private: LoraLayer, which is documented for users of whole models alone; the names of an adapter's
weights in a network.
"""

from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

# What follows a layer's name in those of the weights that `inject_adapter_in_model` adds to it.
_WEIGHT_SUFFIXES = {
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_magnitude_vector.default.weight": "magnitude",
}


def list_lora_layers(network: nn.Module) -> list[tuple[str, Any]]:
    """Every layer that peft has put adapters into, by name."""
    return [(n, m) for n, m in network.named_modules() if isinstance(m, LoraLayer)]


def parse_adapter_name(name: str) -> tuple[str, str]:
    """The layer that a weight of an injected adapter belongs to, and which one it is.

    returns: (layer, "down", "up" or DoRA's "magnitude")
    """
    for suffix, kind in _WEIGHT_SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), kind
    raise ValueError(f"{name} is no weight of a LoRA or DoRA adapter")
