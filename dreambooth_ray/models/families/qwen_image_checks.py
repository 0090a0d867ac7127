"""Whether a directory holds a Qwen-Image, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.layer_shapes import expect_weight_and_bias
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.qwen25_vl_checks import check_qwen25_vl
from dreambooth_ray.models.qwen_vae_checks import check_qwen_vae
from dreambooth_ray.models.shape_checks import (
    Shapes,
    check_shapes,
    read_count_list,
    read_counts,
    repeat_shapes,
)

# Latents that the transformer takes as one token, each way.
PATCH = 2
MAX_TOKENS = 1024  # of a prompt with the marks behind it
# Of QwenImageTransformer2DModel, where a configuration names none.
_DEFAULTS = {
    "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584,
}  # fmt: skip
_AXES_DIMS = [16, 56, 56]
_TIME_WIDTH = 256
# What transformers of the family's other models have, and what those are.
_OTHER_FORMS = {
    "guidance_embeds": "is distilled by guidance",
    "zero_cond_t": "is shown images",
    "use_additional_t_cond": "gives layers",
    "use_layer3d_rope": "gives layers",
}
_ATTENTION = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
)  # fmt: skip


def check_networks(directory: Path) -> None:
    """Of a directory whose parts are there and of their classes.

    raises: ConfigError naming the file
    """
    transformer_folder = directory / "transformer"
    config_counts = read_counts(transformer_folder / "config.json", **_DEFAULTS)
    _check_transformer_config(transformer_folder / "config.json", config_counts)
    check_shapes(transformer_folder, list_transformer_shapes(config_counts))
    patch_channels = check_qwen_vae(directory / "vae") * PATCH**2
    text_width = check_qwen25_vl(directory / "text_encoder")
    for key, dimension_name, part_width, part_folder in (
        ("in_channels", "channels of patches", patch_channels, "vae"),
        ("joint_attention_dim", "text of width", text_width, "text_encoder"),
    ):
        if config_counts[key] != part_width:
            raise ConfigError(
                f"{transformer_folder} takes {dimension_name} {config_counts[key]}, and "
                f"{part_folder}/ gives {part_width}; the parts are of different models"
            )


def _check_transformer_config(path: Path, counts: dict[str, int]) -> None:
    config: dict[str, Any] = read_json(path)
    for key, other_model_description in _OTHER_FORMS.items():
        if config.get(key):
            raise ConfigError(
                f"{path}: {key}=true is of a Qwen-Image that {other_model_description}; take "
                "Qwen-Image"
            )
    axes_dims = read_count_list(path, config, "axes_dims_rope", _AXES_DIMS)
    if sum(axes_dims) != counts["attention_head_dim"] or any(
        axis_dim % 2 for axis_dim in axes_dims
    ):
        raise ConfigError(
            f"{path}: axes_dims_rope={axes_dims} must be even and add up to "
            f"attention_head_dim={counts['attention_head_dim']}"
        )
    patch_channels = counts["out_channels"] * PATCH**2
    if counts["patch_size"] != PATCH or counts["in_channels"] != patch_channels:
        raise ConfigError(
            f"{path}: patch_size={counts['patch_size']} must be {PATCH}, and "
            f"in_channels={counts['in_channels']} what out_channels={counts['out_channels']} are "
            f"in patches, {patch_channels}"
        )


def list_transformer_shapes(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    head_dim = counts["attention_head_dim"]
    hidden_size = counts["num_attention_heads"] * head_dim
    block_shapes: Shapes = {}
    for layer_name in _ATTENTION:
        block_shapes |= expect_weight_and_bias(f"attn.{layer_name}", hidden_size, hidden_size)
    for layer_name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        block_shapes[f"attn.{layer_name}.weight"] = [head_dim]
    for stream_prefix in ("img", "txt"):
        block_shapes |= expect_weight_and_bias(
            f"{stream_prefix}_mod.1", 6 * hidden_size, hidden_size
        )
        block_shapes |= expect_weight_and_bias(
            f"{stream_prefix}_mlp.net.0.proj", 4 * hidden_size, hidden_size
        )
        block_shapes |= expect_weight_and_bias(
            f"{stream_prefix}_mlp.net.2", hidden_size, 4 * hidden_size
        )
    embedder_prefix = "time_text_embed.timestep_embedder"
    return {
        **expect_weight_and_bias(f"{embedder_prefix}.linear_1", hidden_size, _TIME_WIDTH),
        **expect_weight_and_bias(f"{embedder_prefix}.linear_2", hidden_size, hidden_size),
        "txt_norm.weight": [counts["joint_attention_dim"]],
        **expect_weight_and_bias("img_in", hidden_size, counts["in_channels"]),
        **expect_weight_and_bias("txt_in", hidden_size, counts["joint_attention_dim"]),
        **repeat_shapes("transformer_blocks", counts["num_layers"], block_shapes),
        **expect_weight_and_bias("norm_out.linear", 2 * hidden_size, hidden_size),
        **expect_weight_and_bias(
            "proj_out", counts["patch_size"] ** 2 * counts["out_channels"], hidden_size
        ),
    }
