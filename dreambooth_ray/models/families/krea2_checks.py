"""Whether a directory holds a Krea 2, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import INDEX
from dreambooth_ray.models.layer_shapes import expect_weight_and_bias, prefix_shapes
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.qwen3_vl_checks import check_qwen3_vl
from dreambooth_ray.models.qwen_vae_checks import check_qwen_vae
from dreambooth_ray.models.shape_checks import (
    Shapes,
    check_shapes,
    read_count_list,
    read_counts,
    repeat_shapes,
)

# Latents that the transformer takes as one token, each way.
PATCH = 2
MAX_TOKENS = 512  # of a prompt with the marks behind it
# What model_index.json says beside the parts, with the pipeline's defaults.
PATCH_SIZE, SELECTED_LAYERS, IS_DISTILLED = (
    "patch_size", "text_encoder_select_layers", "is_distilled",
)  # fmt: skip
TEXT_LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
# Of Krea2Transformer2DModel, where a configuration names none.
_DEFAULTS = {
    "in_channels": 64, "num_layers": 28, "attention_head_dim": 128, "num_attention_heads": 48,
    "num_key_value_heads": 12, "intermediate_size": 16384, "timestep_embed_dim": 256,
    "text_hidden_dim": 2560, "num_text_layers": 12, "text_num_attention_heads": 20,
    "text_num_key_value_heads": 20, "text_intermediate_size": 6912,
    "num_layerwise_text_blocks": 2, "num_refiner_text_blocks": 2,
}  # fmt: skip
_AXES_DIMS = [32, 48, 48]


def read_text_layer_indices(index: dict[str, Any]) -> list[int]:
    """Hidden states of the text encoder that are read, 0 its embeddings."""
    return list(index.get(SELECTED_LAYERS) or TEXT_LAYERS)


def check_networks(directory: Path) -> None:
    """Of a directory whose parts are there and of their classes.

    raises: ConfigError naming the file
    """
    transformer_folder = directory / "transformer"
    config_counts = read_counts(transformer_folder / "config.json", **_DEFAULTS)
    _check_transformer_config(transformer_folder / "config.json", config_counts)
    text_layers = _check_index(directory / INDEX, config_counts)
    check_shapes(transformer_folder, list_transformer_shapes(config_counts))
    text_width = check_qwen3_vl(directory / "text_encoder", max(text_layers))
    patch_channels = check_qwen_vae(directory / "vae") * PATCH**2
    for key, dimension_name, part_width, part_folder in (
        ("in_channels", "channels of patches", patch_channels, "vae"),
        ("text_hidden_dim", "text of width", text_width, "text_encoder"),
    ):
        if config_counts[key] != part_width:
            raise ConfigError(
                f"{transformer_folder} takes {dimension_name} {config_counts[key]}, and "
                f"{part_folder}/ gives {part_width}; the parts are of different models"
            )


def _check_index(path: Path, counts: dict[str, int]) -> list[int]:
    """The hidden states that are read."""
    model_index = read_json(path)
    if model_index.get(PATCH_SIZE, PATCH) != PATCH:
        raise ConfigError(f"{path}: {PATCH_SIZE}={model_index[PATCH_SIZE]!r} must be {PATCH}")
    selected_layers = model_index.get(SELECTED_LAYERS) or list(TEXT_LAYERS)
    are_numbers = isinstance(selected_layers, list) and all(
        type(x) is int and x >= 0 for x in selected_layers
    )
    if not are_numbers or len(selected_layers) != counts["num_text_layers"]:
        raise ConfigError(
            f"{path}: {SELECTED_LAYERS}={selected_layers!r} must be as many layers as transformer/ "
            f"takes, num_text_layers={counts['num_text_layers']}"
        )
    return read_text_layer_indices(model_index)


def _check_transformer_config(path: Path, counts: dict[str, int]) -> None:
    axes_dims = read_count_list(path, read_json(path), "axes_dims_rope", _AXES_DIMS)
    if sum(axes_dims) != counts["attention_head_dim"] or any(
        axis_dim % 2 for axis_dim in axes_dims
    ):
        raise ConfigError(
            f"{path}: axes_dims_rope={axes_dims} must be even and add up to "
            f"attention_head_dim={counts['attention_head_dim']}"
        )
    for key, divisor_key in (
        ("num_attention_heads", "num_key_value_heads"),
        ("text_num_attention_heads", "text_num_key_value_heads"),
        ("text_hidden_dim", "text_num_attention_heads"),
    ):
        if counts[key] % counts[divisor_key]:
            raise ConfigError(
                f"{path}: {divisor_key}={counts[divisor_key]} does not divide {key}={counts[key]}"
            )


def list_transformer_shapes(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    hidden_size = counts["num_attention_heads"] * counts["attention_head_dim"]
    text_width, in_channels = counts["text_hidden_dim"], counts["in_channels"]
    text_block_shapes = _expect_block(
        text_width,
        text_width // counts["text_num_attention_heads"],
        counts["text_num_key_value_heads"],
        counts["text_intermediate_size"],
    )
    block_shapes = _expect_block(
        hidden_size,
        counts["attention_head_dim"],
        counts["num_key_value_heads"],
        counts["intermediate_size"],
    )
    text_fusion_shapes: Shapes = {
        **repeat_shapes("layerwise_blocks", counts["num_layerwise_text_blocks"], text_block_shapes),
        "projector.weight": [1, counts["num_text_layers"]],
        **repeat_shapes("refiner_blocks", counts["num_refiner_text_blocks"], text_block_shapes),
    }
    return {
        **expect_weight_and_bias("img_in", hidden_size, in_channels),
        **expect_weight_and_bias("time_embed.linear_1", hidden_size, counts["timestep_embed_dim"]),
        **expect_weight_and_bias("time_embed.linear_2", hidden_size, hidden_size),
        **expect_weight_and_bias("time_mod_proj", 6 * hidden_size, hidden_size),
        **prefix_shapes("text_fusion", text_fusion_shapes),
        "txt_in.norm.weight": [text_width],
        **expect_weight_and_bias("txt_in.linear_1", hidden_size, text_width),
        **expect_weight_and_bias("txt_in.linear_2", hidden_size, hidden_size),
        **repeat_shapes(
            "transformer_blocks",
            counts["num_layers"],
            {"scale_shift_table": [6, hidden_size], **block_shapes},
        ),
        "final_layer.scale_shift_table": [2, hidden_size],
        "final_layer.norm.weight": [hidden_size],
        **expect_weight_and_bias("final_layer.linear", in_channels, hidden_size),
    }


def _expect_block(width: int, head: int, num_key_heads: int, inner: int) -> Shapes:
    """Attention with a gate, and what is behind it."""
    return {
        "norm1.weight": [width],
        "norm2.weight": [width],
        "attn.to_q.weight": [width, width],
        "attn.to_k.weight": [num_key_heads * head, width],
        "attn.to_v.weight": [num_key_heads * head, width],
        "attn.to_gate.weight": [width, width],
        "attn.norm_q.weight": [head],
        "attn.norm_k.weight": [head],
        "attn.to_out.0.weight": [width, width],
        "ff.gate.weight": [inner, width],
        "ff.up.weight": [inner, width],
        "ff.down.weight": [width, inner],
    }
