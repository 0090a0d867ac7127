"""Whether a folder holds a Mistral 3, and its tokenizer a chat template; by the files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.models.chat_template_checks import check_chat_template_files
from dreambooth_ray.models.layer_shapes import expect_weight_and_bias, prefix_shapes
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.qwen3_checks import (
    DECODER_NAMES,
    check_depth,
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

# Levels of names as published and as networks of transformers' current releases have them.
_LEVELS = {
    "language_model.model.": "model.language_model.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
# Of no use here; tied to the embeddings where it is not there.
_UNREAD = ("language_model.lm_head.weight", "lm_head.weight")
# Of PixtralVisionConfig, where a configuration names none.
_VISION_DEFAULTS = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_channels": 3,
    "patch_size": 16,
}  # fmt: skip


def check_mistral3(folder: Path, tokenizer: Path, min_layers: int) -> int:
    """The width of its hidden states.

    min_layers: of which hidden states are read
    raises: ConfigError naming the file
    """
    path = folder / "config.json"
    config = read_json(path)
    text_counts = _read_text_counts(path, config)
    check_depth(path, text_counts, min_layers)
    stored_shapes = find_weights(folder, folder.name).read_shapes()
    is_nested = any(name.startswith("model.language_model.") for name in stored_shapes)
    expected_shapes = {
        nest_name(name) if is_nested else name: shape
        for name, shape in expect_mistral3(path, config).items()
    }
    check_shapes(folder, expected_shapes, _UNREAD)
    check_chat_template_files(tokenizer)
    # A processor's own settings, which bundles keep.
    for processor_config in sorted(tokenizer.glob("*processor_config.json")):
        read_json(processor_config)
    return text_counts["hidden_size"]


def nest_name(name: str) -> str:
    """A published weight's name as networks of current releases have it."""
    for published_prefix, nested_prefix in _LEVELS.items():
        if name.startswith(published_prefix):
            return nested_prefix + name.removeprefix(published_prefix)
    return name


def _read_text_counts(path: Path, config: dict[str, Any]) -> dict[str, int]:
    text_config = dict(read_section(path, config, "text_config"))
    if text_config.get("head_dim") is None:
        head_counts = select_positive_counts(
            path, text_config, "hidden_size", "num_attention_heads"
        )
        text_config["head_dim"] = head_counts["hidden_size"] // head_counts["num_attention_heads"]
    return select_positive_counts(path, text_config, *DECODER_NAMES, "head_dim")


def expect_mistral3(path: Path, config: dict[str, Any]) -> Shapes:
    """Shape of each tensor but the head's, under published names.

    path: of the configuration, to name in an error
    raises: ConfigError for a number that is none
    """
    text_counts = _read_text_counts(path, config)
    vision_config = _VISION_DEFAULTS | read_section(path, config, "vision_config")
    vision_counts = select_positive_counts(path, vision_config, *_VISION_DEFAULTS)
    spatial_merge_counts = select_positive_counts(
        path, {"spatial_merge_size": 2} | config, "spatial_merge_size"
    )
    vision_feature_layers = config.get("vision_feature_layer", -1)
    num_vision_feature_layers = (
        len(vision_feature_layers) if isinstance(vision_feature_layers, list) else 1
    )
    vision_width, text_width = vision_counts["hidden_size"], text_counts["hidden_size"]
    projector_shapes: Shapes = {
        "norm.weight": [vision_width],
        "patch_merger.merging_layer.weight": [
            vision_width,
            vision_width * spatial_merge_counts["spatial_merge_size"] ** 2,
        ],
        **expect_weight_and_bias("linear_1", text_width, vision_width * num_vision_feature_layers),
        **expect_weight_and_bias("linear_2", text_width, text_width),
    }
    if not config.get("multimodal_projector_bias"):
        projector_shapes = {
            name: shape for name, shape in projector_shapes.items() if "bias" not in name
        }
    return {
        **prefix_shapes(
            "language_model", expect_language_model(text_counts, _expect_layer(text_counts))
        ),
        **prefix_shapes("multi_modal_projector", projector_shapes),
        **prefix_shapes("vision_tower", _expect_vision(vision_counts)),
    }


def _expect_layer(counts: dict[str, int]) -> Shapes:
    hidden_size = counts["hidden_size"]
    query_width, key_width = (
        counts[f"num_{k}_heads"] * counts["head_dim"] for k in ("attention", "key_value")
    )
    return {
        "self_attn.q_proj.weight": [query_width, hidden_size],
        "self_attn.k_proj.weight": [key_width, hidden_size],
        "self_attn.v_proj.weight": [key_width, hidden_size],
        **expect_behind_attention(hidden_size, counts["intermediate_size"], query_width),
    }


def _expect_vision(counts: dict[str, int]) -> Shapes:
    """Of Pixtral, which sees images, is not used here and is kept for bundles."""
    vision_width, mlp_width, patch_size = (
        counts["hidden_size"],
        counts["intermediate_size"],
        counts["patch_size"],
    )
    layer_shapes: Shapes = {
        **{
            f"attention.{projection_letter}_proj.weight": [vision_width, vision_width]
            for projection_letter in "qkvo"
        },
        "attention_norm.weight": [vision_width],
        "feed_forward.gate_proj.weight": [mlp_width, vision_width],
        "feed_forward.up_proj.weight": [mlp_width, vision_width],
        "feed_forward.down_proj.weight": [vision_width, mlp_width],
        "ffn_norm.weight": [vision_width],
    }
    return {
        "patch_conv.weight": [vision_width, counts["num_channels"], patch_size, patch_size],
        "ln_pre.weight": [vision_width],
        **repeat_shapes("transformer.layers", counts["num_hidden_layers"], layer_shapes),
    }
