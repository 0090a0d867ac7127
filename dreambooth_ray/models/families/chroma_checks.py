"""Whether a directory holds a Chroma, by its files alone."""

from pathlib import Path

from dreambooth_ray.models.families.flux1_checks import (
    FLUX1_DEFAULTS,
    check_parts_fit_transformer,
    check_transformer_form,
    list_one_stream_shapes,
    list_two_stream_shapes,
)
from dreambooth_ray.models.layer_shapes import expect_weight_and_bias
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts, repeat_shapes
from dreambooth_ray.models.t5_checks import check_t5

_DEFAULTS = {
    **{name: value for name, value in FLUX1_DEFAULTS.items() if "pooled" not in name},
    "approximator_num_channels": 64,
    "approximator_hidden_dim": 5120,
    "approximator_layers": 5,
}
_APPROXIMATOR = "distilled_guidance_layer"


def check_networks(directory: Path) -> None:
    """Of a directory whose parts are there and of their classes.

    raises: ConfigError naming the file
    """
    transformer_folder = directory / "transformer"
    config_counts = read_counts(transformer_folder / "config.json", **_DEFAULTS)
    check_transformer_form(
        transformer_folder / "config.json", config_counts, "Chroma", "Chroma1-HD or Chroma1-Base"
    )
    check_shapes(transformer_folder, list_transformer_shapes(config_counts))
    text_width_check = (
        "joint_attention_dim",
        "text of width",
        check_t5(directory / "text_encoder"),
    )
    check_parts_fit_transformer(directory, config_counts, [(*text_width_check, "text_encoder")])


def list_transformer_shapes(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    head_width = counts["attention_head_dim"]
    model_width = counts["num_attention_heads"] * head_width
    hidden_width = counts["approximator_hidden_dim"]
    layer_shapes = {
        **expect_weight_and_bias("linear_1", hidden_width, hidden_width),
        **expect_weight_and_bias("linear_2", hidden_width, hidden_width),
    }
    num_layers = counts["approximator_layers"]
    return {
        **expect_weight_and_bias(
            f"{_APPROXIMATOR}.in_proj", hidden_width, counts["approximator_num_channels"]
        ),
        **repeat_shapes(f"{_APPROXIMATOR}.layers", num_layers, layer_shapes),
        **repeat_shapes(f"{_APPROXIMATOR}.norms", num_layers, {"weight": [hidden_width]}),
        **expect_weight_and_bias(f"{_APPROXIMATOR}.out_proj", model_width, hidden_width),
        **expect_weight_and_bias("context_embedder", model_width, counts["joint_attention_dim"]),
        **expect_weight_and_bias("x_embedder", model_width, counts["in_channels"]),
        **repeat_shapes(
            "transformer_blocks",
            counts["num_layers"],
            list_two_stream_shapes(model_width, head_width),
        ),
        **repeat_shapes(
            "single_transformer_blocks",
            counts["num_single_layers"],
            list_one_stream_shapes(model_width, head_width),
        ),
        **expect_weight_and_bias("proj_out", counts["in_channels"], model_width),
    }
