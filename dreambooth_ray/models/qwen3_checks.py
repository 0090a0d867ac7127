"""Whether a folder holds a Qwen3, and its tokenizer a chat template; by the files alone."""

from collections.abc import Mapping
from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.chat_template_checks import check_chat_template
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
    counts = read_counts(path, *DECODER_NAMES, head_dim=128)
    check_depth(path, counts, min_layers)
    names = find_weights(folder, folder.name).read_shapes()
    is_bare = any(name.startswith("layers.") for name in names)
    expected = {
        name.removeprefix("model.") if is_bare else name: shape
        for name, shape in expect_qwen3(counts).items()
    }
    # Tied to the embeddings, or of no use here.
    check_shapes(folder, expected, unread=("lm_head.weight",))
    check_chat_template(tokenizer)
    return counts["hidden_size"]


def check_depth(path: Path, counts: Mapping[str, int], min_layers: int) -> None:
    """raises: ConfigError naming the configuration if a decoder has fewer layers than are read"""
    if counts["num_hidden_layers"] < min_layers:
        raise ConfigError(
            f"{path}: num_hidden_layers={counts['num_hidden_layers']}, and hidden states of layer "
            f"{min_layers} are read; the parts are of different models"
        )


def expect_qwen3(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    width, inner, head = counts["hidden_size"], counts["intermediate_size"], counts["head_dim"]
    queries, keys = (counts[f"num_{k}_heads"] * head for k in ("attention", "key_value"))
    layer: Shapes = {
        "self_attn.q_proj.weight": [queries, width],
        "self_attn.k_proj.weight": [keys, width],
        "self_attn.v_proj.weight": [keys, width],
        "self_attn.q_norm.weight": [head],
        "self_attn.k_norm.weight": [head],
        **expect_behind_attention(width, inner, queries),
    }
    return expect_decoder(counts, layer)


def expect_decoder(counts: dict[str, int], layer: Shapes) -> Shapes:
    """Of a Qwen's language model; layer: of each of its layers"""
    width = counts["hidden_size"]
    return {
        "model.embed_tokens.weight": [counts["vocab_size"], width],
        **repeat_shapes("model.layers", counts["num_hidden_layers"], layer),
        "model.norm.weight": [width],
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
