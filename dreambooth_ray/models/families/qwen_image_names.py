"""Qwen-Image's layers under kohya's names, which are those of diffusers."""

import re
from pathlib import Path

from dreambooth_ray.models.kohya_names import KohyaLayer

_PREFIX = "lora_unet_"
_OTHERS = (
    "img_in", "txt_in", "proj_out", "norm_out.linear",
    "time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
)  # fmt: skip
_BLOCK_LAYER = re.compile(
    r"transformer_blocks\.\d+\.("
    r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|(img|txt)_(mlp\.net\.(0\.proj|2)|mod\.1)"
    r")"
)


def find_kohya_layer(directory: Path, part: str, layer: str) -> KohyaLayer | None:
    """As `KohyaNames.find`."""
    if layer not in _OTHERS and not _BLOCK_LAYER.fullmatch(layer):
        return None
    return KohyaLayer(f"{_PREFIX}{layer.replace('.', '_')}")
