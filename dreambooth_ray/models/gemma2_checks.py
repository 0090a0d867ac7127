"""Whether a folder holds a Gemma 2, by its files alone."""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.qwen3_checks import expect_behind_attention, expect_decoder
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts

_LEVEL = "model."  # of names, of files with the whole language model


def check_gemma2(folder: Path) -> int:
    """The width of its hidden states; raises: ConfigError naming the file"""
    path = folder / "config.json"
    # head_dim as of Gemma2Config, where a configuration names none.
    counts = read_counts(
        path, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", head_dim=256,
    )  # fmt: skip
    if counts["hidden_size"] % counts["num_attention_heads"]:
        raise ConfigError(
            f"{path}: num_attention_heads={counts['num_attention_heads']} does not divide "
            f"hidden_size={counts['hidden_size']}"
        )
    check_shapes(folder, expect_gemma2(counts), ("lm_head.weight",), dropped_prefix=_LEVEL)
    return counts["hidden_size"]


def expect_gemma2(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    width, head = counts["hidden_size"], counts["head_dim"]
    queries, keys = (counts[f"num_{k}_heads"] * head for k in ("attention", "key_value"))
    layer: Shapes = {
        "self_attn.q_proj.weight": [queries, width],
        "self_attn.k_proj.weight": [keys, width],
        "self_attn.v_proj.weight": [keys, width],
        "pre_feedforward_layernorm.weight": [width],
        "post_feedforward_layernorm.weight": [width],
        **expect_behind_attention(width, counts["intermediate_size"], queries),
    }
    decoder = expect_decoder(counts, layer)
    return {name.removeprefix(_LEVEL): shape for name, shape in decoder.items()}
