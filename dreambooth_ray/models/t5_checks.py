"""Whether a folder holds a T5 encoder, by the files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts, repeat_shapes

_DEFAULTS = {"num_layers": 6, "relative_attention_num_buckets": 32}


def check_t5(folder: Path) -> int:
    """The width of its hidden states; raises: ConfigError naming the file"""
    config_path = folder / "config.json"
    config_sizes = read_counts(
        config_path, "vocab_size", "d_model", "d_kv", "d_ff", "num_heads", **_DEFAULTS
    )
    config = read_json(config_path)
    # The second is the first one's table again.
    check_shapes(folder, expect_t5(config_sizes, config), unread=("encoder.embed_tokens.weight",))
    return config_sizes["d_model"]


def expect_t5(counts: dict[str, int], config: dict[str, Any]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    hidden_width, attention_width = counts["d_model"], counts["num_heads"] * counts["d_kv"]
    is_gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    is_gated = bool(config.get("is_gated_act", is_gated))
    attention_prefix, feed_forward_prefix = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    block_shapes: Shapes = {
        **{
            f"{attention_prefix}.{weight_name}.weight": [attention_width, hidden_width]
            for weight_name in "qkv"
        },
        f"{attention_prefix}.o.weight": [hidden_width, attention_width],
        "layer.0.layer_norm.weight": [hidden_width],
        **{
            f"{feed_forward_prefix}.{weight_name}.weight": [counts["d_ff"], hidden_width]
            for weight_name in (("wi_0", "wi_1") if is_gated else ("wi",))
        },
        f"{feed_forward_prefix}.wo.weight": [hidden_width, counts["d_ff"]],
        "layer.1.layer_norm.weight": [hidden_width],
    }
    position_bias_shape = [counts["relative_attention_num_buckets"], counts["num_heads"]]
    return {
        "shared.weight": [counts["vocab_size"], hidden_width],
        **repeat_shapes("encoder.block", counts["num_layers"], block_shapes),
        f"encoder.block.0.{attention_prefix}.relative_attention_bias.weight": position_bias_shape,
        "encoder.final_layer_norm.weight": [hidden_width],
    }
