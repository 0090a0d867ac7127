"""Of peft: how it keeps the adapters of a layer, and how it mixes adapters in one forward.

Private: PeftModel._enable_peft_forward_hooks and the adapter name `__base__`; the peft_config that
`unload` leaves behind; the names of an adapter's weights in a network. Of LoraLayer, which is
documented for users of whole models alone: lora_A, lora_B, lora_embedding_A, lora_bias,
lora_variant, r, scaling, base_layer, in_features and out_features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

_BASE = "__base__"
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


def has_adapter(layer: Any, name: str | None) -> bool:
    """Whether a layer has linear weights of that adapter."""
    return name in layer.lora_A


def is_plain_lora(layer: Any, names: set[str | None]) -> bool:
    """Whether each of these adapters is a product of two matrices here, or leaves the layer alone.

    Not so: embeddings, convolutions, biases, and variants (DoRA and its like).
    """
    layer_names = names & set(layer.lora_A)
    if not layer_names:
        return not names & set(layer.lora_embedding_A)
    is_linear = isinstance(layer, Linear) and isinstance(layer.base_layer, nn.Linear)
    has_bias = any(layer.lora_bias[name] for name in layer_names)
    return is_linear and not has_bias and not layer_names & set(layer.lora_variant)


def lora_rank(layer: Any, name: str) -> int:
    """Rank of an adapter in a layer."""
    return int(layer.r[name])


def lora_weights(layer: Any, name: str) -> tuple[Tensor, Tensor]:
    """(I, r) and (r, O), the second scaled: their product is what the adapter adds."""
    down: Tensor = layer.lora_A[name].weight.T
    up: Tensor = layer.lora_B[name].weight.T * layer.scaling[name]
    return down, up


@contextmanager
def mixed_adapters(model: PeftModel, names: Sequence[str | None]) -> Iterator[None]:
    """Inside, row i of the base model's input goes through the adapter names[i], None for none.

    What PeftModel.forward does, for a network that shares the model's layers and is not its own.
    """
    peft_names = [name or _BASE for name in names]
    with model._enable_peft_forward_hooks(adapter_names=peft_names):
        yield


def unload_adapters(model: PeftModel) -> nn.Module:
    """The base model without any adapter, as if it had never had one."""
    network: nn.Module = model.unload()
    # It leaves this attribute behind, and would take it for an adapter.
    with suppress(AttributeError):
        del network.peft_config
    return network
