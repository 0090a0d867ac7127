"""Whether a folder holds a Qwen2.5-VL, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.layer_shapes import expect_affine
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.qwen3_checks import (
    DECODER_NAMES,
    expect_behind_attention,
    expect_decoder,
)
from dreambooth_ray.models.shape_checks import (
    Shapes,
    check_shapes,
    find_counts,
    repeat_shapes,
)
from dreambooth_ray.models.weight_files import find_weights

# Levels of names that files of transformers' current releases have, and published ones do not.
_LEVELS = {"visual.": "model.visual.", "model.": "model.language_model."}
# Of Qwen2_5_VLVisionConfig, where a configuration names none.
_VISION_DEFAULTS = {
    "depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "in_channels": 3,
    "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 3584,
}  # fmt: skip


def check_qwen25_vl(folder: Path) -> int:
    """The width of its hidden states; raises: ConfigError naming the file"""
    path = folder / "config.json"
    config = read_json(path)
    counts = find_counts(path, _read_text_config(config), *DECODER_NAMES)
    if counts["hidden_size"] % counts["num_attention_heads"]:
        raise ConfigError(
            f"{path}: num_attention_heads={counts['num_attention_heads']} does not divide "
            f"hidden_size={counts['hidden_size']}"
        )
    names = find_weights(folder, folder.name).read_shapes()
    is_nested = any(name.startswith("model.language_model.") for name in names)
    expected = {
        _nest(name) if is_nested else name: shape
        for name, shape in expect_qwen25_vl(path, config).items()
    }
    check_shapes(folder, expected)
    return counts["hidden_size"]


def _nest(name: str) -> str:
    for level, nested in _LEVELS.items():
        if name.startswith(level):
            return nested + name.removeprefix(level)
    return name


def _read_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Published files have these keys twice, or outside alone; the inner ones count."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def expect_qwen25_vl(path: Path, config: dict[str, Any]) -> Shapes:
    """Shape of each tensor, under published names.

    path: of the configuration, to name in an error
    raises: ConfigError for a number that is none
    """
    counts = find_counts(path, _read_text_config(config), *DECODER_NAMES)
    vision_config = config.get("vision_config") or {}
    vision = find_counts(path, _VISION_DEFAULTS | vision_config, *_VISION_DEFAULTS)
    return {
        **expect_vision(vision),
        **expect_decoder(counts, _expect_layer(counts)),
        "lm_head.weight": [counts["vocab_size"], counts["hidden_size"]],
    }


def _expect_layer(counts: dict[str, int]) -> Shapes:
    width, inner = counts["hidden_size"], counts["intermediate_size"]
    keys = width // counts["num_attention_heads"] * counts["num_key_value_heads"]
    return {
        **expect_affine("self_attn.q_proj", width, width),
        **expect_affine("self_attn.k_proj", keys, width),
        **expect_affine("self_attn.v_proj", keys, width),
        **expect_behind_attention(width, inner, width),
    }


def expect_vision(counts: dict[str, int]) -> Shapes:
    """Of the network that sees images, which is not used here and is kept for bundles."""
    width, inner, patch = counts["hidden_size"], counts["intermediate_size"], counts["patch_size"]
    merged = width * counts["spatial_merge_size"] ** 2
    block: Shapes = {
        "norm1.weight": [width],
        "norm2.weight": [width],
        **expect_affine("attn.qkv", 3 * width, width),
        **expect_affine("attn.proj", width, width),
        **expect_affine("mlp.gate_proj", inner, width),
        **expect_affine("mlp.up_proj", inner, width),
        **expect_affine("mlp.down_proj", width, inner),
    }
    pixels = [counts["in_channels"], counts["temporal_patch_size"], patch, patch]
    return {
        "visual.patch_embed.proj.weight": [width, *pixels],
        **repeat_shapes("visual.blocks", counts["depth"], block),
        "visual.merger.ln_q.weight": [width],
        **expect_affine("visual.merger.mlp.0", merged, merged),
        **expect_affine("visual.merger.mlp.2", counts["out_hidden_size"], merged),
    }
