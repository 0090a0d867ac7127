"""Whether a folder holds a Mistral 3, and its tokenizer a chat template; by the files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.models.chat_template_checks import check_chat_template
from dreambooth_ray.models.layer_shapes import expect_affine, prefix_shapes
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.qwen3_checks import (
    DECODER_NAMES,
    check_depth,
    expect_behind_attention,
    expect_decoder,
)
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, find_counts, repeat_shapes
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
    counts = _read_text_counts(path, config)
    check_depth(path, counts, min_layers)
    names = find_weights(folder, folder.name).read_shapes()
    is_nested = any(name.startswith("model.language_model.") for name in names)
    expected = {
        nest_name(name) if is_nested else name: shape
        for name, shape in expect_mistral3(path, config).items()
    }
    check_shapes(folder, expected, _UNREAD)
    check_chat_template(tokenizer)
    # A processor's own settings, which bundles keep.
    for settings in sorted(tokenizer.glob("*processor_config.json")):
        read_json(settings)
    return counts["hidden_size"]


def nest_name(name: str) -> str:
    """A published weight's name as networks of current releases have it."""
    for level, nested in _LEVELS.items():
        if name.startswith(level):
            return nested + name.removeprefix(level)
    return name


def _read_text_counts(path: Path, config: dict[str, Any]) -> dict[str, int]:
    text = dict(config.get("text_config") or {})
    if text.get("head_dim") is None:
        counts = find_counts(path, text, "hidden_size", "num_attention_heads")
        text["head_dim"] = counts["hidden_size"] // counts["num_attention_heads"]
    return find_counts(path, text, *DECODER_NAMES, "head_dim")


def expect_mistral3(path: Path, config: dict[str, Any]) -> Shapes:
    """Shape of each tensor but the head's, under published names.

    path: of the configuration, to name in an error
    raises: ConfigError for a number that is none
    """
    counts = _read_text_counts(path, config)
    vision_config = _VISION_DEFAULTS | (config.get("vision_config") or {})
    vision = find_counts(path, vision_config, *_VISION_DEFAULTS)
    merge = find_counts(path, {"spatial_merge_size": 2} | config, "spatial_merge_size")
    layers = config.get("vision_feature_layer", -1)
    num_feature_layers = len(layers) if isinstance(layers, list) else 1
    width, text_width = vision["hidden_size"], counts["hidden_size"]
    projector: Shapes = {
        "norm.weight": [width],
        "patch_merger.merging_layer.weight": [width, width * merge["spatial_merge_size"] ** 2],
        **expect_affine("linear_1", text_width, width * num_feature_layers),
        **expect_affine("linear_2", text_width, text_width),
    }
    if not config.get("multimodal_projector_bias"):
        projector = {name: shape for name, shape in projector.items() if "bias" not in name}
    return {
        **prefix_shapes("language_model", expect_decoder(counts, _expect_layer(counts))),
        **prefix_shapes("multi_modal_projector", projector),
        **prefix_shapes("vision_tower", _expect_vision(vision)),
    }


def _expect_layer(counts: dict[str, int]) -> Shapes:
    width = counts["hidden_size"]
    queries, keys = (
        counts[f"num_{k}_heads"] * counts["head_dim"] for k in ("attention", "key_value")
    )
    return {
        "self_attn.q_proj.weight": [queries, width],
        "self_attn.k_proj.weight": [keys, width],
        "self_attn.v_proj.weight": [keys, width],
        **expect_behind_attention(width, counts["intermediate_size"], queries),
    }


def _expect_vision(counts: dict[str, int]) -> Shapes:
    """Of Pixtral, which sees images, is not used here and is kept for bundles."""
    width, inner, patch = counts["hidden_size"], counts["intermediate_size"], counts["patch_size"]
    layer: Shapes = {
        **{f"attention.{name}_proj.weight": [width, width] for name in "qkvo"},
        "attention_norm.weight": [width],
        "feed_forward.gate_proj.weight": [inner, width],
        "feed_forward.up_proj.weight": [inner, width],
        "feed_forward.down_proj.weight": [width, inner],
        "ffn_norm.weight": [width],
    }
    return {
        "patch_conv.weight": [width, counts["num_channels"], patch, patch],
        "ln_pre.weight": [width],
        **repeat_shapes("transformer.layers", counts["num_hidden_layers"], layer),
    }
