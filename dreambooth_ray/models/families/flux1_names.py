"""FLUX.1's layers under the names of its authors, which kohya's files and ComfyUI have."""

import re
from dataclasses import replace
from pathlib import Path

from dreambooth_ray.models.kohya_names import AdapterFileLayer, KohyaLayer

_PREFIX, _CLIP_PREFIX = "lora_unet_", "lora_te1_text_model_"
# Queries, keys and values are one layer there; of blocks with one stream, and a layer of four
# times their width.
_QKV, _QKV_MLP = (1, 1, 1), (1, 1, 1, 4)
_DOUBLE = {
    "attn.to_q": KohyaLayer("img_attn_qkv", 0, _QKV),
    "attn.to_k": KohyaLayer("img_attn_qkv", 1, _QKV),
    "attn.to_v": KohyaLayer("img_attn_qkv", 2, _QKV),
    "attn.add_q_proj": KohyaLayer("txt_attn_qkv", 0, _QKV),
    "attn.add_k_proj": KohyaLayer("txt_attn_qkv", 1, _QKV),
    "attn.add_v_proj": KohyaLayer("txt_attn_qkv", 2, _QKV),
    "attn.to_out.0": KohyaLayer("img_attn_proj"),
    "attn.to_add_out": KohyaLayer("txt_attn_proj"),
    "ff.net.0.proj": KohyaLayer("img_mlp_0"),
    "ff.net.2": KohyaLayer("img_mlp_2"),
    "ff_context.net.0.proj": KohyaLayer("txt_mlp_0"),
    "ff_context.net.2": KohyaLayer("txt_mlp_2"),
    "norm1.linear": KohyaLayer("img_mod_lin"),
    "norm1_context.linear": KohyaLayer("txt_mod_lin"),
}
_SINGLE = {
    "attn.to_q": KohyaLayer("linear1", 0, _QKV_MLP),
    "attn.to_k": KohyaLayer("linear1", 1, _QKV_MLP),
    "attn.to_v": KohyaLayer("linear1", 2, _QKV_MLP),
    "proj_mlp": KohyaLayer("linear1", 3, _QKV_MLP),
    "proj_out": KohyaLayer("linear2"),
    "norm.linear": KohyaLayer("modulation_lin"),
}
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_CLIP_LAYER = re.compile(r"(?:text_model\.)?(encoder\.layers\.\d+\.(?:self_attn|mlp)\..+)")


def find_kohya_layer(directory: Path, part: str, layer: str) -> KohyaLayer | None:
    """As `KohyaNames.find`."""
    if part == "text_encoder":
        match = _CLIP_LAYER.fullmatch(layer)
        return KohyaLayer(f"{_CLIP_PREFIX}{match[1].replace('.', '_')}") if match else None
    match = _BLOCK.fullmatch(layer)
    if match is None:
        return None
    is_single_stream, block_number, block_layer = match.groups()
    single_or_double, kohya_layers = (
        ("single", _SINGLE) if is_single_stream else ("double", _DOUBLE)
    )
    kohya_layer = kohya_layers.get(block_layer)
    return kohya_layer and replace(
        kohya_layer, name=f"{_PREFIX}{single_or_double}_blocks_{block_number}_{kohya_layer.name}"
    )


_TIMED = "time_text_embed"
_OUTER = {
    "x_embedder": AdapterFileLayer("img_in"),
    "context_embedder": AdapterFileLayer("txt_in"),
    f"{_TIMED}.timestep_embedder.linear_1": AdapterFileLayer("time_in.in_layer"),
    f"{_TIMED}.timestep_embedder.linear_2": AdapterFileLayer("time_in.out_layer"),
    f"{_TIMED}.text_embedder.linear_1": AdapterFileLayer("vector_in.in_layer"),
    f"{_TIMED}.text_embedder.linear_2": AdapterFileLayer("vector_in.out_layer"),
    f"{_TIMED}.guidance_embedder.linear_1": AdapterFileLayer("guidance_in.in_layer"),
    f"{_TIMED}.guidance_embedder.linear_2": AdapterFileLayer("guidance_in.out_layer"),
    "proj_out": AdapterFileLayer("final_layer.linear"),
    # Its authors have the shift first, diffusers the scale.
    "norm_out.linear": AdapterFileLayer("final_layer.adaLN_modulation.1", (1, 0), (1, 1)),
}
# XLabs' processors: of both streams, and of what has one.
_XLABS = {
    "attn.to_q": ("qkv_lora1", 0), "attn.to_k": ("qkv_lora1", 1), "attn.to_v": ("qkv_lora1", 2),
    "attn.add_q_proj": ("qkv_lora2", 0), "attn.add_k_proj": ("qkv_lora2", 1),
    "attn.add_v_proj": ("qkv_lora2", 2),
    "attn.to_out.0": ("proj_lora1", None), "attn.to_add_out": ("proj_lora2", None),
}  # fmt: skip
_XLABS_SINGLE = {
    "attn.to_q": ("qkv_lora", 0), "attn.to_k": ("qkv_lora", 1), "attn.to_v": ("qkv_lora", 2),
    "proj_out": ("proj_lora", None),
}  # fmt: skip


def list_adapter_layer_names(directory: Path, layer: str) -> list[AdapterFileLayer]:
    """As `ModelFamily.list_adapter_layer_names`."""
    if layer in _OUTER:
        return [_OUTER[layer]]
    match = _BLOCK.fullmatch(layer)
    if match is None:
        return []
    is_single_stream, block_number, block_layer = match.groups()
    single_or_double, xlabs_names = (
        ("single", _XLABS_SINGLE) if is_single_stream else ("double", _XLABS)
    )
    if block_layer not in xlabs_names:
        return []
    xlabs_name, qkv_index = xlabs_names[block_layer]
    xlabs_name = f"{single_or_double}_blocks.{block_number}.processor.{xlabs_name}"
    return [
        AdapterFileLayer(xlabs_name)
        if qkv_index is None
        else AdapterFileLayer(xlabs_name, (qkv_index,), _QKV)
    ]
