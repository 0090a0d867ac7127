"""Whether a folder holds a Qwen3-VL, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.layer_shapes import expect_weight_and_bias, prefix_shapes
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.qwen3_checks import DECODER_NAMES, check_depth, expect_qwen3
from dreambooth_ray.models.shape_checks import (
    Shapes,
    check_shapes,
    read_section,
    repeat_shapes,
    select_positive_counts,
)

_LEVEL = "model."  # of names, of files with the whole language model
# Of Qwen3VLVisionConfig, where a configuration names none.
_VISION_DEFAULTS: dict[str, Any] = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "in_channels": 3,
    "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}  # fmt: skip
_DEEPSTACK, _DEEPSTACK_LAYERS = "deepstack_visual_indexes", [8, 16, 24]


def check_qwen3_vl(folder: Path, last_layer: int) -> int:
    """The width of its hidden states.

    last_layer: of the hidden states that are read, 0 the embeddings
    raises: ConfigError naming the file
    """
    path = folder / "config.json"
    config = read_json(path)
    text_counts = _read_text_counts(path, config)
    check_depth(path, text_counts, last_layer)
    check_shapes(folder, expect_qwen3_vl(path, config), ("lm_head.weight",), dropped_prefix=_LEVEL)
    return text_counts["hidden_size"]


def _read_text_counts(path: Path, config: dict[str, Any]) -> dict[str, int]:
    text_config = {"head_dim": 128} | read_section(path, config, "text_config")
    return select_positive_counts(path, text_config, *DECODER_NAMES, "head_dim")


def expect_qwen3_vl(path: Path, config: dict[str, Any]) -> Shapes:
    """Shape of each tensor.

    path: of the configuration, to name in an error
    raises: ConfigError for a number that is none
    """
    text_shapes = expect_qwen3(_read_text_counts(path, config))
    vision_config = read_section(path, config, "vision_config")
    vision_counts = select_positive_counts(
        path, _VISION_DEFAULTS | vision_config, *_VISION_DEFAULTS
    )
    deepstack_layers = vision_config.get(_DEEPSTACK, _DEEPSTACK_LAYERS)
    if not isinstance(deepstack_layers, list):
        raise ConfigError(f"{path}: {_DEEPSTACK}={deepstack_layers!r} must be a list of layers")
    return {
        **prefix_shapes(
            "language_model",
            {name.removeprefix(_LEVEL): shape for name, shape in text_shapes.items()},
        ),
        **prefix_shapes("visual", _expect_vision(vision_counts, len(deepstack_layers))),
    }


def _expect_vision(counts: dict[str, int], num_deepstack: int) -> Shapes:
    """Of the network that sees images, which is not used here and is kept for bundles."""
    vision_width, mlp_width, patch_size = (
        counts["hidden_size"],
        counts["intermediate_size"],
        counts["patch_size"],
    )
    merged_width = vision_width * counts["spatial_merge_size"] ** 2
    block_shapes: Shapes = {
        **expect_weight_and_bias("norm1", vision_width),
        **expect_weight_and_bias("norm2", vision_width),
        **expect_weight_and_bias("attn.qkv", 3 * vision_width, vision_width),
        **expect_weight_and_bias("attn.proj", vision_width, vision_width),
        **expect_weight_and_bias("mlp.linear_fc1", mlp_width, vision_width),
        **expect_weight_and_bias("mlp.linear_fc2", vision_width, mlp_width),
    }
    merger_shapes: Shapes = {
        **expect_weight_and_bias("linear_fc1", merged_width, merged_width),
        **expect_weight_and_bias("linear_fc2", counts["out_hidden_size"], merged_width),
    }
    patch_kernel_shape = [
        counts["in_channels"],
        counts["temporal_patch_size"],
        patch_size,
        patch_size,
    ]
    deepstack_shapes = merger_shapes | expect_weight_and_bias("norm", merged_width)
    return {
        **expect_weight_and_bias("patch_embed.proj", vision_width, *patch_kernel_shape),
        "pos_embed.weight": [counts["num_position_embeddings"], vision_width],
        **repeat_shapes("blocks", counts["depth"], block_shapes),
        **prefix_shapes("merger", merger_shapes | expect_weight_and_bias("norm", vision_width)),
        **repeat_shapes("deepstack_merger_list", num_deepstack, deepstack_shapes),
    }
