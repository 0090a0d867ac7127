"""Whether a folder holds one of CLIP's text encoders with its projection, by files alone."""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts, repeat_shapes

# Of CLIPTextConfig, where a configuration names none.
_DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512,
    "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77,
}  # fmt: skip


def check_clip_text_encoder(folder: Path) -> tuple[int, int]:
    """The width of its states, and that of a pooled text.

    raises: ConfigError naming the file
    """
    config_path = folder / "config.json"
    config_counts = read_counts(config_path, **_DEFAULTS)
    hidden_width, num_heads = config_counts["hidden_size"], config_counts["num_attention_heads"]
    if hidden_width % num_heads:
        raise ConfigError(
            f"{config_path}: num_attention_heads={num_heads} does not divide {hidden_width}"
        )
    check_shapes(
        folder,
        list_clip_shapes(config_counts),
        unread=("embeddings.position_ids",),
        dropped_prefix="text_model.",
    )
    return hidden_width, config_counts["projection_dim"]


def list_clip_shapes(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    hidden_width, mlp_width = counts["hidden_size"], counts["intermediate_size"]
    norm_names = ("layer_norm1", "layer_norm2")
    layer_shapes: Shapes = {
        **{
            f"self_attn.{name}.{kind}": [hidden_width, hidden_width]
            if kind == "weight"
            else [hidden_width]
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
            for kind in ("weight", "bias")
        },
        **{f"{name}.{kind}": [hidden_width] for name in norm_names for kind in ("weight", "bias")},
        "mlp.fc1.weight": [mlp_width, hidden_width],
        "mlp.fc1.bias": [mlp_width],
        "mlp.fc2.weight": [hidden_width, mlp_width],
        "mlp.fc2.bias": [hidden_width],
    }
    return {
        "embeddings.token_embedding.weight": [counts["vocab_size"], hidden_width],
        "embeddings.position_embedding.weight": [counts["max_position_embeddings"], hidden_width],
        **repeat_shapes("encoder.layers", counts["num_hidden_layers"], layer_shapes),
        "final_layer_norm.weight": [hidden_width],
        "final_layer_norm.bias": [hidden_width],
        "text_projection.weight": [counts["projection_dim"], hidden_width],
    }
