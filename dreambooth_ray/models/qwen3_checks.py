"""Whether a folder holds a Qwen3, and its tokenizer a chat template; by the files alone."""

from collections.abc import Mapping
from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.chat_template_checks import check_chat_template_files
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts, repeat_shapes
from dreambooth_ray.models.weight_files import find_weights

# Of the configuration of a decoder.
DECODER_NAMES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip


def check_qwen3(folder: Path, tokenizer: Path, min_layers: int) -> int:
    """The width of its hidden states.

    min_layers: of which hidden states are read
    raises: ConfigError naming the file
    """
    path = folder / "config.json"
    config_counts = read_counts(path, *DECODER_NAMES, head_dim=128)
    check_depth(path, config_counts, min_layers)
    stored_shapes = find_weights(folder, folder.name).read_shapes()
    lacks_model_prefix = any(name.startswith("layers.") for name in stored_shapes)
    expected_shapes = {
        name.removeprefix("model.") if lacks_model_prefix else name: shape
        for name, shape in expect_qwen3(config_counts).items()
    }
    # Tied to the embeddings, or of no use here.
    check_shapes(folder, expected_shapes, unread=("lm_head.weight",))
    check_chat_template_files(tokenizer)
    return config_counts["hidden_size"]


def check_depth(path: Path, counts: Mapping[str, int], min_layers: int) -> None:
    """raises: ConfigError naming the configuration if a decoder has fewer layers than are read"""
    if counts["num_hidden_layers"] < min_layers:
        raise ConfigError(
            f"{path}: num_hidden_layers={counts['num_hidden_layers']}, and hidden states of layer "
            f"{min_layers} are read; the parts are of different models"
        )


def expect_qwen3(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    hidden_size, mlp_width, head_dim = (
        counts["hidden_size"],
        counts["intermediate_size"],
        counts["head_dim"],
    )
    query_width, key_width = (
        counts[f"num_{k}_heads"] * head_dim for k in ("attention", "key_value")
    )
    layer_shapes: Shapes = {
        "self_attn.q_proj.weight": [query_width, hidden_size],
        "self_attn.k_proj.weight": [key_width, hidden_size],
        "self_attn.v_proj.weight": [key_width, hidden_size],
        "self_attn.q_norm.weight": [head_dim],
        "self_attn.k_norm.weight": [head_dim],
        **expect_behind_attention(hidden_size, mlp_width, query_width),
    }
    return expect_language_model(counts, layer_shapes)


def expect_language_model(counts: dict[str, int], layer: Shapes) -> Shapes:
    """Of a Qwen's language model; layer: of each of its layers"""
    hidden_size = counts["hidden_size"]
    return {
        "model.embed_tokens.weight": [counts["vocab_size"], hidden_size],
        **repeat_shapes("model.layers", counts["num_hidden_layers"], layer),
        "model.norm.weight": [hidden_size],
    }


def expect_behind_attention(width: int, inner: int, queries: int) -> Shapes:
    """Of a layer, what all Qwens have alike: all but the projections of queries, keys, values."""
    return {
        "self_attn.o_proj.weight": [width, queries],
        "mlp.gate_proj.weight": [inner, width],
        "mlp.up_proj.weight": [inner, width],
        "mlp.down_proj.weight": [width, inner],
        "input_layernorm.weight": [width],
        "post_attention_layernorm.weight": [width],
    }
