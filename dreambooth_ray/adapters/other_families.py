"""Whose adapter a file is, by the names of its layers: to say it where they bind to nothing.

Nothing heavy is imported.
"""

import re
from collections.abc import Iterable

# Names with underscores alone. The first that one layer's name has decides.
_SIGNS = {
    "Krea 2": r"txtfusion|(^|_)blocks_\d+_(attn_(wq|wk|wv|wo|gate)|mlp_(gate|up|down))$",
    "Anima": r"(^|_)blocks_\d+_(cross_attn_(q|k|v|output)_proj|self_attn_output_proj"
    r"|mlp_layer[12]|adaln_modulation_.+)$",
    "Wan": r"(^|_)blocks_\d+_(self|cross)_attn_(q|k|v|o|k_img|v_img)$",
    "HunyuanVideo": r"individual_token_refiner",
    "Qwen-Image": r"(^|_)transformer_blocks_\d+_(img|txt)_(mlp|mod)_",
    "Stable Diffusion 3": r"joint_blocks_\d+_",
    "Z-Image": r"(^|_)(noise|context)_refiner_\d+_|(^|_)layers_\d+_(attention|feed_forward)_",
    "FLUX.2": r"(double|single)_stream_modulation|_attn_to_qkv_mlp_proj$|_ff_linear_(in|out)$",
    "FLUX.1": r"(double|single)_blocks_\d+_|single_transformer_blocks_\d+_",
    "Stable Diffusion XL": r"^lora_te2_text_model|^text_encoder_2_text_model"
    r"|_transformer_blocks_[2-9]_attn[12]_|(input|output)_blocks_[478]_[01]_transformer_blocks_",
    "Stable Diffusion": r"(down|up|mid)_blocks?_\d*_?attentions_\d+_|(input|output)_blocks_\d+_",
    "LTX-Video": r"(^|_)transformer_blocks_\d+_attn[12]_to_",
}  # fmt: skip
_PATTERNS = {family: re.compile(pattern) for family, pattern in _SIGNS.items()}


def guess_family(layers: Iterable[str]) -> str | None:
    """The family whose layers have such names; None where nothing tells it.

    layers: as a file calls them
    """
    flat_names = [layer.replace(".", "_") for layer in layers]
    for family, pattern in _PATTERNS.items():
        if any(pattern.search(name) for name in flat_names):
            return family
    return None
