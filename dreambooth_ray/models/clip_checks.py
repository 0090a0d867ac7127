"""Whether a folder holds one of CLIP's text encoders with its projection, by files alone."""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts, repeat_shapes

# Of CLIPTextConfig, where a configuration names none.
_DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512,
    "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77,
}  # fmt: skip


def check_clip(folder: Path) -> tuple[int, int]:
    """The width of its states, and that of a pooled text.

    raises: ConfigError naming the file
    """
    path = folder / "config.json"
    config_counts = read_counts(path, **_DEFAULTS)
    width, num_heads = config_counts["hidden_size"], config_counts["num_attention_heads"]
    if width % num_heads:
        raise ConfigError(f"{path}: num_attention_heads={num_heads} does not divide {width}")
    check_shapes(
        folder,
        expect_clip(config_counts),
        unread=("embeddings.position_ids",),
        dropped_prefix="text_model.",
    )
    return width, config_counts["projection_dim"]


def expect_clip(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    width, mlp_width = counts["hidden_size"], counts["intermediate_size"]
    norm_names = ("layer_norm1", "layer_norm2")
    layer_shapes: Shapes = {
        **{
            f"self_attn.{name}.{kind}": [width, width] if kind == "weight" else [width]
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
            for kind in ("weight", "bias")
        },
        **{f"{name}.{kind}": [width] for name in norm_names for kind in ("weight", "bias")},
        "mlp.fc1.weight": [mlp_width, width],
        "mlp.fc1.bias": [mlp_width],
        "mlp.fc2.weight": [width, mlp_width],
        "mlp.fc2.bias": [width],
    }
    return {
        "embeddings.token_embedding.weight": [counts["vocab_size"], width],
        "embeddings.position_embedding.weight": [counts["max_position_embeddings"], width],
        **repeat_shapes("encoder.layers", counts["num_hidden_layers"], layer_shapes),
        "final_layer_norm.weight": [width],
        "final_layer_norm.bias": [width],
        "text_projection.weight": [counts["projection_dim"], width],
    }
