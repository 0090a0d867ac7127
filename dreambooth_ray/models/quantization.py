"""Frozen weights in fewer bits, under adapters that stay in float32 (QLoRA, arXiv 2305.14314).

int8 and fp8 are torchao's weight-only types, nf4 is bitsandbytes'. Products are computed in the
dtype that the weights had before.
"""

from typing import Any

import torch
from torch import nn

from dreambooth_ray.config.training import Quantization

# Smaller layers save nothing, and the time embedding's decide much.
_MIN_FEATURES = 64
_KEPT = ("time_embedding", "time_emb_proj", "add_embedding")
# Bytes of a quantized weight, with its share of the scales.
_WEIGHT_BYTES = {"int8": 1.02, "fp8": 1.02, "nf4": 0.53}


def quantize_linear_layers(model: nn.Module, kind: Quantization, dtype: torch.dtype) -> int:
    """Quantize a frozen model's linear layers in place, before it gets adapters.

    dtype: that products are computed in
    returns: how many layers were quantized
    """
    if kind == "none":
        return 0
    layer_names = [
        layer_name
        for layer_name, module in model.named_modules()
        if _is_quantizable(layer_name, module)
    ]
    for layer_name in layer_names:
        layer = model.get_submodule(layer_name).to(dtype).requires_grad_(False)
        if kind == "nf4":
            model.set_submodule(layer_name, _make_nf4_layer(layer, dtype))
        else:
            _quantize_by_torchao(layer, kind)
    if kind == "nf4":
        # peft asks the model, not its layers.
        model.is_loaded_in_4bit = True  # type: ignore[assignment]
    return len(layer_names)


def _is_quantizable(name: str, module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Linear)
        and min(module.in_features, module.out_features) >= _MIN_FEATURES
        and not any(kept_name in name for kept_name in _KEPT)
    )


def count_frozen_bytes(model: nn.Module, kind: Quantization) -> int:
    """Bytes of a model's frozen weights, as `quantize_linear_layers` would leave them.

    model: with frozen weights in the dtype that they have in training, if they are not quantized
    """
    total_bytes = 0.0
    for module_name, module in model.named_modules():
        is_quantized = kind != "none" and _is_quantizable(module_name, module)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                is_quantized_weight = is_quantized and parameter_name == "weight"
                bytes_per_weight = (
                    _WEIGHT_BYTES[kind] if is_quantized_weight else parameter.element_size()
                )
                total_bytes += parameter.numel() * bytes_per_weight
    return int(total_bytes)


def _quantize_by_torchao(layer: nn.Module, kind: Quantization) -> None:
    from torchao import quantization  # noqa: PLC0415  an extra

    torchao_config_classes = {
        "int8": quantization.Int8WeightOnlyConfig,
        "fp8": quantization.Float8WeightOnlyConfig,
    }
    quantization.quantize_(layer, torchao_config_classes[kind]())


def _make_nf4_layer(layer: Any, dtype: torch.dtype) -> nn.Module:
    from bitsandbytes import nn as bnb_nn  # noqa: PLC0415  an extra

    nf4_layer = bnb_nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None,
        compute_dtype=dtype, quant_type="nf4",
    )  # fmt: skip
    nf4_layer.weight = bnb_nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    nf4_layer.bias = layer.bias
    # It quantizes when it is moved to a device.
    placed_layer: nn.Module = nf4_layer.to(layer.weight.device)
    return placed_layer
