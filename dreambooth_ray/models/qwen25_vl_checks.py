"""Whether a folder holds a Qwen2.5-VL, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.layer_shapes import expect_weight_and_bias
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.qwen3_checks import (
    DECODER_NAMES,
    expect_behind_attention,
    expect_language_model,
)
from dreambooth_ray.models.shape_checks import (
    Shapes,
    check_shapes,
    read_section,
    repeat_shapes,
    select_positive_counts,
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
    text_counts = select_positive_counts(path, _read_text_config(config), *DECODER_NAMES)
    if text_counts["hidden_size"] % text_counts["num_attention_heads"]:
        raise ConfigError(
            f"{path}: num_attention_heads={text_counts['num_attention_heads']} does not divide "
            f"hidden_size={text_counts['hidden_size']}"
        )
    stored_shapes = find_weights(folder, folder.name).read_shapes()
    is_nested = any(name.startswith("model.language_model.") for name in stored_shapes)
    expected_shapes = {
        _nest_name(name) if is_nested else name: shape
        for name, shape in expect_qwen25_vl(path, config).items()
    }
    check_shapes(folder, expected_shapes)
    return text_counts["hidden_size"]


def _nest_name(name: str) -> str:
    for published_prefix, nested_prefix in _LEVELS.items():
        if name.startswith(published_prefix):
            return nested_prefix + name.removeprefix(published_prefix)
    return name


def _read_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Published files have these keys twice, or outside alone; the inner ones count."""
    text_config = config.get("text_config")
    return text_config if isinstance(text_config, dict) else config


def expect_qwen25_vl(path: Path, config: dict[str, Any]) -> Shapes:
    """Shape of each tensor, under published names.

    path: of the configuration, to name in an error
    raises: ConfigError for a number that is none
    """
    text_counts = select_positive_counts(path, _read_text_config(config), *DECODER_NAMES)
    vision_config = read_section(path, config, "vision_config")
    vision_counts = select_positive_counts(
        path, _VISION_DEFAULTS | vision_config, *_VISION_DEFAULTS
    )
    return {
        **expect_vision(vision_counts),
        **expect_language_model(text_counts, _expect_layer(text_counts)),
        "lm_head.weight": [text_counts["vocab_size"], text_counts["hidden_size"]],
    }


def _expect_layer(counts: dict[str, int]) -> Shapes:
    hidden_size, mlp_width = counts["hidden_size"], counts["intermediate_size"]
    key_width = hidden_size // counts["num_attention_heads"] * counts["num_key_value_heads"]
    return {
        **expect_weight_and_bias("self_attn.q_proj", hidden_size, hidden_size),
        **expect_weight_and_bias("self_attn.k_proj", key_width, hidden_size),
        **expect_weight_and_bias("self_attn.v_proj", key_width, hidden_size),
        **expect_behind_attention(hidden_size, mlp_width, hidden_size),
    }


def expect_vision(counts: dict[str, int]) -> Shapes:
    """Of the network that sees images, which is not used here and is kept for bundles."""
    vision_width, mlp_width, patch_size = (
        counts["hidden_size"],
        counts["intermediate_size"],
        counts["patch_size"],
    )
    merged_width = vision_width * counts["spatial_merge_size"] ** 2
    block_shapes: Shapes = {
        "norm1.weight": [vision_width],
        "norm2.weight": [vision_width],
        **expect_weight_and_bias("attn.qkv", 3 * vision_width, vision_width),
        **expect_weight_and_bias("attn.proj", vision_width, vision_width),
        **expect_weight_and_bias("mlp.gate_proj", mlp_width, vision_width),
        **expect_weight_and_bias("mlp.up_proj", mlp_width, vision_width),
        **expect_weight_and_bias("mlp.down_proj", vision_width, mlp_width),
    }
    patch_kernel_shape = [
        counts["in_channels"],
        counts["temporal_patch_size"],
        patch_size,
        patch_size,
    ]
    return {
        "visual.patch_embed.proj.weight": [vision_width, *patch_kernel_shape],
        **repeat_shapes("visual.blocks", counts["depth"], block_shapes),
        "visual.merger.ln_q.weight": [vision_width],
        **expect_weight_and_bias("visual.merger.mlp.0", merged_width, merged_width),
        **expect_weight_and_bias("visual.merger.mlp.2", counts["out_hidden_size"], merged_width),
    }
