"""Adapters under the names of kohya's sd-scripts, which A1111 and ComfyUI read."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


def rename_weights(part: str, weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """peft's weights of one part, layer.lora_A.weight, as lora_unet_layer.lora_down.weight.

    Each layer gets its alpha: readers scale by alpha / rank.
    """
    renamed = {}
    for name, tensor in weights.items():
        layer, matrix = name.removesuffix(".weight").rsplit(".", 1)
        layer = PREFIXES[part] + layer.removeprefix("text_model.").replace(".", "_")
        direction = {"lora_A": "lora_down", "lora_B": "lora_up"}[matrix]
        renamed[f"{layer}.{direction}.weight"] = tensor
        renamed[f"{layer}.alpha"] = torch.tensor(alpha)
    return renamed


def build_metadata(settings: Mapping[str, Any], is_v2: bool, title: str) -> dict[str, str]:
    """The metadata that sd-scripts write, as far as we have it. settings: peft's."""
    rank, alpha = str(settings["r"]), str(settings["lora_alpha"])
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": alpha}),
        "ss_base_model_version": "sd_v2" if is_v2 else "sd_v1",
        "ss_v2": str(is_v2),
        "ss_output_name": title,
    }
