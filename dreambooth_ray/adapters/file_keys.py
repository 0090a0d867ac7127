"""The keys of adapter files: which layer a tensor is for, and what it is of that layer's adapter.

kohya's sd-scripts, diffusers (old and new), peft, ai-toolkit, OneTrainer, LyCORIS, XLabs and BFL
end their keys differently; the roles are the same. Nothing heavy is imported.

Roles: down and up are LoRA's two factors, mid the kernel between them; hada_* are LoHa's and lokr_*
LoKr's, by LyCORIS's names; magnitude is DoRA's; alpha over the rank scales the product.
"""

import re
from collections.abc import Iterable

from dreambooth_ray.errors import ConfigError

_LYCORIS = (
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
)  # fmt: skip
# The longest end that a key has decides.
_ROLES = {
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid",
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".down.weight": "down", ".up.weight": "up",
    ".lora_embedding_A": "embedding_down", ".lora_embedding_B": "embedding_up",
    ".alpha": "alpha", ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    **{f".{name}": name for name in _LYCORIS},
}  # fmt: skip
# What is no product of factors: kinds of adapters that are told apart by their keys, and refused.
_OTHER_KINDS = {
    ".diff": "whole weights (LyCORIS's full)",
    ".diff_b": "biases beside its factors",
    ".key_norm.scale": "weights of norms, as FLUX.1's control adapters have",
    ".query_norm.scale": "weights of norms, as FLUX.1's control adapters have",
    ".w_norm": "weights of norms", ".b_norm": "weights of norms",
    ".lora_B.bias": "biases beside its factors", ".lora_up.bias": "biases beside its factors",
    ".oft_blocks": "OFT", ".oft_diag": "OFT", ".oft_R.weight": "OFT",
    ".a1.weight": "GLoRA", ".b1.weight": "GLoRA", ".on_input": "IA3",
}  # fmt: skip
# diffusers' first names, from before layers had adapters of their own.
_OLD_ATTENTION = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora")
_OLD_TEXT_ATTENTION = re.compile(r"(.+\.self_attn)\.to_(q|k|v|out)_lora")
_MAX_SHOWN = 120


def split_key(key: str) -> tuple[str, str]:
    """(layer as the file calls it, role) of a key.

    raises: ConfigError for a key that is no part of an adapter of a known kind
    """
    for num_dots in range(4, 0, -1):
        key_parts = key.rsplit(".", num_dots)
        if len(key_parts) > num_dots and (role := _ROLES.get("." + ".".join(key_parts[1:]))):
            return _modernize(key_parts[0]), role
    for key_end, adapter_kind in _OTHER_KINDS.items():
        if key.endswith(key_end):
            raise ConfigError(
                f"{shorten_key(key)} is of {adapter_kind}; LoRA, DoRA, LoHa and LoKr are read, of "
                "weights alone"
            )
    raise ConfigError(f"{shorten_key(key)} is no tensor of a LoRA, DoRA, LoHa or LoKr")


def _modernize(layer: str) -> str:
    if match := _OLD_ATTENTION.fullmatch(layer):
        projection_name = {"to_out": "to_out.0"}.get(match[2], match[2])
        return f"{match[1]}.{projection_name}"
    if match := _OLD_TEXT_ATTENTION.fullmatch(layer):
        return f"{match[1]}.{match[2]}_proj"
    return layer


def group_keys(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Keys by role, by the layer as the file calls it; raises ConfigError as `split_key`."""
    keys_by_layer: dict[str, dict[str, str]] = {}
    for key in sorted(keys):
        layer, role = split_key(key)
        keys_by_role = keys_by_layer.setdefault(layer, {})
        if role in keys_by_role:
            raise ConfigError(
                f"{shorten_key(key)} and {shorten_key(keys_by_role[role])} say the same twice"
            )
        keys_by_role[role] = key
    return keys_by_layer


def shorten_key(key: str) -> str:
    """A key as an error shows it: what a hostile file can write there is bounded."""
    shown_key = key if len(key) <= _MAX_SHOWN else f"{key[:_MAX_SHOWN]}..."
    return repr(shown_key) if not shown_key.isprintable() or " " in shown_key else shown_key
