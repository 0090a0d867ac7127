"""Krea 2's layers under the names of its authors, which files of other trainers have."""

import re
from pathlib import Path

from dreambooth_ray.models.kohya_names import AdapterFileLayer

_OTHERS = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "text_fusion.projector": "txtfusion.projector",
    "final_layer.linear": "last.linear",
}
_STACKS = {"transformer_blocks": "blocks", "text_fusion": "txtfusion"}
_LAYERS = {
    "attn.to_q": "attn.wq", "attn.to_k": "attn.wk", "attn.to_v": "attn.wv",
    "attn.to_out.0": "attn.wo", "attn.to_gate": "attn.gate",
    "ff.gate": "mlp.gate", "ff.up": "mlp.up", "ff.down": "mlp.down",
}  # fmt: skip
_BLOCK_LAYER = re.compile(
    r"(transformer_blocks|text_fusion)((?:\.(?:layerwise|refiner)_blocks)?\.\d+)\.(.+)"
)


def list_adapter_layer_names(directory: Path, layer: str) -> list[AdapterFileLayer]:
    """As `ModelFamily.list_adapter_layer_names`."""
    if layer in _OTHERS:
        return [AdapterFileLayer(_OTHERS[layer])]
    match = _BLOCK_LAYER.fullmatch(layer)
    if match is None or match[3] not in _LAYERS:
        return []
    return [AdapterFileLayer(f"{_STACKS[match[1]]}{match[2]}.{_LAYERS[match[3]]}")]
