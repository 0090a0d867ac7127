"""Whether a directory holds a Sana, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.dc_vae_checks import check_dc_vae
from dreambooth_ray.models.gemma2_checks import check_gemma2
from dreambooth_ray.models.layer_shapes import expect_weight_and_bias
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.shape_checks import (
    Shapes,
    check_shapes,
    repeat_shapes,
    select_positive_counts,
)

# Of a prompt, that the transformer is told.
MAX_TOKENS = 300
# What sides of images are multiples of, pixels: as the pipeline has it.
MULTIPLE = 32
# Of SanaTransformer2DModel, where a configuration names none.
_DEFAULTS = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32,
    "num_layers": 20, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240, "caption_channels": 2304, "sample_size": 32, "patch_size": 1,
}  # fmt: skip
_MLP_RATIO = 2.5
_SIDES = (16, 32, 64)  # of latents, of 512, 1024 and 2048 pixels
_SIDE_4K = 128
_TIME_WIDTH = 256
_QK_NORM = "rms_norm_across_heads"


def read_transformer_config(folder: Path) -> dict[str, Any]:
    """Its configuration with the defaults of diffusers' class; raises: ConfigError"""
    return _DEFAULTS | {"mlp_ratio": _MLP_RATIO} | read_json(folder / "config.json")


def check_networks(directory: Path) -> None:
    """Of a directory whose parts are there and of their classes.

    raises: ConfigError naming the file
    """
    transformer_folder = directory / "transformer"
    config = read_transformer_config(transformer_folder)
    select_positive_counts(transformer_folder / "config.json", config, *_DEFAULTS)
    _check_transformer_config(transformer_folder / "config.json", config)
    check_shapes(transformer_folder, list_transformer_shapes(config))
    for key, dimension_name, part_width, part_folder in (
        ("in_channels", "latents of channels", check_dc_vae(directory / "vae"), "vae"),
        ("caption_channels", "text of width", check_gemma2(directory / "text_encoder"),
         "text_encoder"),
    ):  # fmt: skip
        if config[key] != part_width:
            raise ConfigError(
                f"{transformer_folder} takes {dimension_name} {config[key]}, and {part_folder}/ "
                f"gives {part_width}; the parts are of different models"
            )


def _check_transformer_config(path: Path, config: dict[str, Any]) -> None:
    if config.get("guidance_embeds"):
        raise ConfigError(f"{path}: guidance_embeds=true is of Sana Sprint; take Sana itself")
    if config["sample_size"] == _SIDE_4K:
        raise ConfigError(
            f"{path}: sample_size={_SIDE_4K} is of Sana 4K, whose VAE would have to work in tiles; "
            "take one of 512, 1024 or 2048 pixels"
        )
    if config["sample_size"] not in _SIDES:
        raise ConfigError(f"{path}: sample_size={config['sample_size']} must be one of {_SIDES}")
    mlp_ratio, qk_norm = config["mlp_ratio"], config.get("qk_norm")
    if type(mlp_ratio) not in (int, float) or not mlp_ratio > 0:
        raise ConfigError(f"{path}: mlp_ratio={mlp_ratio!r} must be a number above 0")
    if qk_norm not in (None, _QK_NORM):
        raise ConfigError(f"{path}: qk_norm={qk_norm!r} must be null or {_QK_NORM!r}")
    hidden_size = config["num_attention_heads"] * config["attention_head_dim"]
    for key, expected_description, expected_value in (
        ("out_channels", "in_channels", config["in_channels"]),
        ("cross_attention_dim", "the width of all heads", hidden_size),
        ("patch_size", "one latent", 1),
    ):
        if config[key] != expected_value:
            raise ConfigError(
                f"{path}: {key}={config[key]} must be {expected_description}, {expected_value}"
            )


def list_transformer_shapes(config: dict[str, Any]) -> Shapes:
    """Shape of each tensor; config: with all keys"""
    hidden_size = config["num_attention_heads"] * config["attention_head_dim"]
    embedder_prefix = "time_embed.emb.timestep_embedder"
    return {
        "scale_shift_table": [2, hidden_size],
        **expect_weight_and_bias("patch_embed.proj", hidden_size, config["in_channels"], 1, 1),
        **expect_weight_and_bias(f"{embedder_prefix}.linear_1", hidden_size, _TIME_WIDTH),
        **expect_weight_and_bias(f"{embedder_prefix}.linear_2", hidden_size, hidden_size),
        **expect_weight_and_bias("time_embed.linear", 6 * hidden_size, hidden_size),
        **expect_weight_and_bias(
            "caption_projection.linear_1", hidden_size, config["caption_channels"]
        ),
        **expect_weight_and_bias("caption_projection.linear_2", hidden_size, hidden_size),
        "caption_norm.weight": [hidden_size],
        **repeat_shapes(
            "transformer_blocks", config["num_layers"], _expect_block(config, hidden_size)
        ),
        **expect_weight_and_bias("proj_out", config["out_channels"], hidden_size),
    }


def _expect_block(config: dict[str, Any], width: int) -> Shapes:
    cross_attention_width = config["num_cross_attention_heads"] * config["cross_attention_head_dim"]
    mlp_width = int(config["mlp_ratio"] * width)
    block_shapes: Shapes = {
        "scale_shift_table": [6, width],
        **{f"attn1.to_{qkv_letter}.weight": [width, width] for qkv_letter in "qkv"},
        **expect_weight_and_bias("attn1.to_out.0", width, width),
        **expect_weight_and_bias("attn2.to_out.0", width, cross_attention_width),
        **expect_weight_and_bias("ff.conv_inverted", 2 * mlp_width, width, 1, 1),
        **expect_weight_and_bias("ff.conv_depth", 2 * mlp_width, 1, 3, 3),
        "ff.conv_point.weight": [width, mlp_width, 1, 1],
    }
    for qkv_letter in "qkv":
        block_shapes |= expect_weight_and_bias(
            f"attn2.to_{qkv_letter}", cross_attention_width, width
        )
    if config.get("qk_norm"):
        block_shapes |= {f"attn1.norm_{qkv_letter}.weight": [width] for qkv_letter in "qk"}
        block_shapes |= {
            f"attn2.norm_{qkv_letter}.weight": [cross_attention_width] for qkv_letter in "qk"
        }
    return block_shapes
