"""Adapters under the names of kohya's sd-scripts, which A1111 and ComfyUI read."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dreambooth_ray.errors import ConfigError

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
# sd-scripts looks for adapters inside Transformer2DModel, ResnetBlock2D, Downsample2D, Upsample2D,
# CLIPAttention and CLIPMLP alone, and passes over what else a file has (networks/lora.py).
_READ_LAYERS = {
    "unet": re.compile(
        r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)"
        r"\.(attentions|resnets|downsamplers|upsamplers)\..+"
    ),
    "text_encoder": re.compile(r"(text_model\.)?encoder\.layers\.\d+\.(self_attn|mlp)\..+"),
}


def check_layers(part: str, layer_names: Iterable[str]) -> None:
    """raises ConfigError naming a layer that readers of this format would pass over"""
    unread_layers = sorted({n for n in layer_names if not _READ_LAYERS[part].fullmatch(n)})
    if unread_layers:
        raise ConfigError(
            f"--format=kohya: its readers know no adapter of {unread_layers[0]} "
            f"({len(unread_layers)} of {part}'s layers): take --format=lora, or single-file, which "
            "has the adapters fused in"
        )


def rename_weights(part: str, weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """peft's weights of one part, layer.lora_A.weight, as lora_unet_layer.lora_down.weight.

    Each layer gets its alpha: readers scale by alpha / rank.
    raises: ConfigError for layers that readers do not know
    """
    renamed = {}
    check_layers(part, (name.removesuffix(".weight").rpartition(".")[0] for name in weights))
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
