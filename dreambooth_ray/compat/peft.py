"""Of peft: in which modules of a network it keeps adapters, and what it calls their weights.

Private: BaseTunerLayer and LycorisLayer, which are documented for users of whole models alone; the
names of an adapter's weights in a network.
"""

from types import MethodType
from typing import Any

from peft.tuners.lycoris_utils import LycorisLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

# What follows a layer's name in those of the weights that `inject_adapter_in_model` adds to it.
_WEIGHT_SUFFIXES = {
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_magnitude_vector.default.weight": "magnitude",
}


def list_adapted_layers(network: nn.Module) -> list[tuple[str, Any]]:
    """Every layer that peft has put adapters into, by name."""
    return [(n, m) for n, m in network.named_modules() if isinstance(m, BaseTunerLayer)]


def forgo_module_dropout(network: nn.Module) -> None:
    """Let LoHa and LoKr never leave out a layer, in place.

    In training they draw a random number at each forward and compare it with the share of layers
    left out, though that is zero: a draw from the global generator, and a branch that no recording
    and no tensor without contents has an answer to.
    """
    for _, layer in list_adapted_layers(network):
        if isinstance(layer, LycorisLayer):
            layer.training = False
            layer.train = MethodType(_stay_in_evaluation, layer)


def _stay_in_evaluation(layer: nn.Module, mode: bool = True) -> nn.Module:
    del mode
    return layer


def parse_adapter_weight_name(name: str) -> tuple[str, str]:
    """The layer that a weight of an injected adapter belongs to, and which one it is.

    returns: (layer, "down", "up" or DoRA's "magnitude")
    """
    for weight_suffix, weight_role in _WEIGHT_SUFFIXES.items():
        if name.endswith(weight_suffix):
            return name.removesuffix(weight_suffix), weight_role
    raise ValueError(f"{name} is no weight of a LoRA or DoRA adapter")
