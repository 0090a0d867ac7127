"""Z-Image's layers under the names of its authors, which kohya's files and ComfyUI have."""

import re
from pathlib import Path

from dreambooth_ray.models.kohya_names import AdapterFileLayer, KohyaLayer

_PREFIX = "lora_unet_"
# Queries, keys and values are one layer there.
_LAYERS = {
    "attention.to_q": ("attention_qkv", 0, 3),
    "attention.to_k": ("attention_qkv", 1, 3),
    "attention.to_v": ("attention_qkv", 2, 3),
    "attention.to_out.0": ("attention_out", 0, 1),
    "feed_forward.w1": ("feed_forward_w1", 0, 1),
    "feed_forward.w2": ("feed_forward_w2", 0, 1),
    "feed_forward.w3": ("feed_forward_w3", 0, 1),
}
_BLOCK = re.compile(r"(layers|noise_refiner|context_refiner)\.(\d+)\.(.+)")


def find_kohya_layer(directory: Path, part: str, layer: str) -> KohyaLayer | None:
    """As `KohyaNames.find`; readers differ on what is in no block."""
    match = _BLOCK.fullmatch(layer)
    if match is None or match[3] not in _LAYERS:
        return None
    kohya_name, qkv_index, num_fused_layers = _LAYERS[match[3]]
    return KohyaLayer(
        f"{_PREFIX}{match[1]}_{match[2]}_{kohya_name}", qkv_index, (1,) * num_fused_layers
    )


# diffusers numbers them by patch sizes.
_OUTER = re.compile(r"all_(x_embedder|final_layer)\.\d+-\d+(\..+)?")


def list_adapter_layer_names(directory: Path, layer: str) -> list[AdapterFileLayer]:
    """As `ModelFamily.list_adapter_layer_names`."""
    match = _OUTER.fullmatch(layer)
    return [AdapterFileLayer(f"{match[1]}{match[2] or ''}")] if match else []
