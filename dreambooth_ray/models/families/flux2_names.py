"""FLUX.2's layers under the names of its authors, which kohya's files and ComfyUI have."""

import re
from pathlib import Path

from dreambooth_ray.models.kohya_names import AdapterFileLayer, KohyaLayer

_PREFIX = "lora_unet_"
# Queries, keys and values of both streams are one layer there.
_DOUBLE = {
    "attn.to_q": ("img_attn_qkv", 0),
    "attn.to_k": ("img_attn_qkv", 1),
    "attn.to_v": ("img_attn_qkv", 2),
    "attn.add_q_proj": ("txt_attn_qkv", 0),
    "attn.add_k_proj": ("txt_attn_qkv", 1),
    "attn.add_v_proj": ("txt_attn_qkv", 2),
    "attn.to_out.0": ("img_attn_proj", None),
    "attn.to_add_out": ("txt_attn_proj", None),
    "ff.linear_in": ("img_mlp_0", None),
    "ff.linear_out": ("img_mlp_2", None),
    "ff_context.linear_in": ("txt_mlp_0", None),
    "ff_context.linear_out": ("txt_mlp_2", None),
}
_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
_OTHERS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in_in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in_out_layer",
    "proj_out": "final_layer_linear",
}
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


def find_kohya_layer(directory: Path, part: str, layer: str) -> KohyaLayer | None:
    """As `KohyaNames.find`."""
    if layer in _OTHERS:
        return KohyaLayer(f"{_PREFIX}{_OTHERS[layer]}")
    match = _BLOCK.fullmatch(layer)
    if match is None:
        return None
    is_single_stream, block_number, block_layer = match.groups()
    if is_single_stream:
        kohya_name = _SINGLE.get(block_layer)
        return (
            KohyaLayer(f"{_PREFIX}single_blocks_{block_number}_{kohya_name}")
            if kohya_name
            else None
        )
    if block_layer not in _DOUBLE:
        return None
    kohya_name, qkv_index = _DOUBLE[block_layer]
    kohya_name = f"{_PREFIX}double_blocks_{block_number}_{kohya_name}"
    return (
        KohyaLayer(kohya_name)
        if qkv_index is None
        else KohyaLayer(kohya_name, qkv_index, (1, 1, 1))
    )


# Of layers that kohya's readers pass over.
_UNREAD = {
    "time_guidance_embed.guidance_embedder.linear_1": AdapterFileLayer("guidance_in.in_layer"),
    "time_guidance_embed.guidance_embedder.linear_2": AdapterFileLayer("guidance_in.out_layer"),
    "double_stream_modulation_img.linear": AdapterFileLayer("double_stream_modulation_img.lin"),
    "double_stream_modulation_txt.linear": AdapterFileLayer("double_stream_modulation_txt.lin"),
    "single_stream_modulation.linear": AdapterFileLayer("single_stream_modulation.lin"),
    # Its authors have the shift first, diffusers the scale.
    "norm_out.linear": AdapterFileLayer("final_layer.adaLN_modulation.1", (1, 0), (1, 1)),
}


def list_adapter_layer_names(directory: Path, layer: str) -> list[AdapterFileLayer]:
    """As `ModelFamily.list_adapter_layer_names`."""
    return [_UNREAD[layer]] if layer in _UNREAD else []
