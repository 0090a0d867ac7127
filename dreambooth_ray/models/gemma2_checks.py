"""Whether a folder holds a Gemma 2, by its files alone."""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.qwen3_checks import expect_behind_attention, expect_language_model
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts

_LEVEL = "model."  # of names, of files with the whole language model


def check_gemma2(folder: Path) -> int:
    """The width of its hidden states; raises: ConfigError naming the file"""
    path = folder / "config.json"
    # head_dim as of Gemma2Config, where a configuration names none.
    config_counts = read_counts(
        path, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", head_dim=256,
    )  # fmt: skip
    if config_counts["hidden_size"] % config_counts["num_attention_heads"]:
        raise ConfigError(
            f"{path}: num_attention_heads={config_counts['num_attention_heads']} does not divide "
            f"hidden_size={config_counts['hidden_size']}"
        )
    check_shapes(
        folder, list_gemma2_shapes(config_counts), ("lm_head.weight",), dropped_prefix=_LEVEL
    )
    return config_counts["hidden_size"]


def list_gemma2_shapes(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    hidden_size, head_dim = counts["hidden_size"], counts["head_dim"]
    query_width, key_width = (
        counts[f"num_{k}_heads"] * head_dim for k in ("attention", "key_value")
    )
    layer_shapes: Shapes = {
        "self_attn.q_proj.weight": [query_width, hidden_size],
        "self_attn.k_proj.weight": [key_width, hidden_size],
        "self_attn.v_proj.weight": [key_width, hidden_size],
        "pre_feedforward_layernorm.weight": [hidden_size],
        "post_feedforward_layernorm.weight": [hidden_size],
        **expect_behind_attention(hidden_size, counts["intermediate_size"], query_width),
    }
    language_model_shapes = expect_language_model(counts, layer_shapes)
    return {name.removeprefix(_LEVEL): shape for name, shape in language_model_shapes.items()}
