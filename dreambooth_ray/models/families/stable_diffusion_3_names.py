"""Stable Diffusion 3's layers under their authors' names, which kohya's files and ComfyUI have."""

import re
from pathlib import Path

from dreambooth_ray.models.kohya_names import AdapterFileLayer
from dreambooth_ray.models.part_configs import read_json

# Queries, keys and values are one layer there.
_QKV = (1, 1, 1)
_BLOCK_LAYERS = {
    "attn.to_q": ("x_block.attn.qkv", 0),
    "attn.to_k": ("x_block.attn.qkv", 1),
    "attn.to_v": ("x_block.attn.qkv", 2),
    "attn.add_q_proj": ("context_block.attn.qkv", 0),
    "attn.add_k_proj": ("context_block.attn.qkv", 1),
    "attn.add_v_proj": ("context_block.attn.qkv", 2),
    "attn2.to_q": ("x_block.attn2.qkv", 0),
    "attn2.to_k": ("x_block.attn2.qkv", 1),
    "attn2.to_v": ("x_block.attn2.qkv", 2),
    "attn.to_out.0": ("x_block.attn.proj", None),
    "attn.to_add_out": ("context_block.attn.proj", None),
    "attn2.to_out.0": ("x_block.attn2.proj", None),
    "ff.net.0.proj": ("x_block.mlp.fc1", None),
    "ff.net.2": ("x_block.mlp.fc2", None),
    "ff_context.net.0.proj": ("context_block.mlp.fc1", None),
    "ff_context.net.2": ("context_block.mlp.fc2", None),
    "norm1.linear": ("x_block.adaLN_modulation.1", None),
    "norm1_context.linear": ("context_block.adaLN_modulation.1", None),
}
_OUTER = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
}
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def list_adapter_layer_names(directory: Path, layer: str) -> list[AdapterFileLayer]:
    """As `ModelFamily.list_adapter_layer_names`."""
    if layer in _OUTER:
        return [AdapterFileLayer(_OUTER[layer])]
    # Its authors have the shift first, diffusers the scale: here, and for text in the last block.
    if layer == "norm_out.linear":
        return [AdapterFileLayer("final_layer.adaLN_modulation.1", (1, 0), (1, 1))]
    match = _BLOCK.fullmatch(layer)
    if match is None or match[2] not in _BLOCK_LAYERS:
        return []
    original_name, qkv_index = _BLOCK_LAYERS[match[2]]
    original_name = f"joint_blocks.{match[1]}.{original_name}"
    if match[2] == "norm1_context.linear" and _is_last_block(directory, int(match[1])):
        return [AdapterFileLayer(original_name, (1, 0), (1, 1))]
    return [
        AdapterFileLayer(original_name)
        if qkv_index is None
        else AdapterFileLayer(original_name, (qkv_index,), _QKV)
    ]


def _is_last_block(directory: Path, number: int) -> bool:
    transformer_config = read_json(directory / "transformer" / "config.json")
    return number == int(transformer_config["num_layers"]) - 1
