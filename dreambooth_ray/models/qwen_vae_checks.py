"""Whether a folder holds Qwen-Image's VAE, by its files alone.

It is of videos: convolutions have three axes, and an image is a video of one frame.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.layer_shapes import (
    Shapes,
    expect_convolution,
    expect_weight_and_bias,
    prefix_shapes,
)
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.shape_checks import check_shapes, select_positive_counts

# Of AutoencoderKLQwenImage, where a configuration names none.
_COUNTS = {"base_dim": 96, "z_dim": 16, "num_res_blocks": 2, "input_channels": 3}
_LISTS: dict[str, list[Any]] = {
    "dim_mult": [1, 2, 4, 4],
    "temperal_downsample": [False, True, True],
    "attn_scales": [],
}
_STATISTICS = ("latents_mean", "latents_std")
_NUM_CHANNELS = 3  # of an image


def read_qwen_vae(folder: Path) -> dict[str, Any]:
    """Its configuration with the defaults of diffusers' class; raises: ConfigError"""
    return _COUNTS | _LISTS | read_json(folder / "config.json")


def compute_qwen_vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels that a latent spans each way."""
    return int(2 ** len(config["temperal_downsample"]))


def check_qwen_vae(folder: Path) -> int:
    """The channels of its latents; raises: ConfigError naming the file"""
    path, config = folder / "config.json", read_qwen_vae(folder)
    config_counts = select_positive_counts(path, config, *_COUNTS)
    _check_lists(path, config)
    if config_counts["input_channels"] != _NUM_CHANNELS:
        raise ConfigError(
            f"{path}: input_channels={config_counts['input_channels']}, and images have "
            f"{_NUM_CHANNELS}; it is of a Qwen-Image of layers"
        )
    _check_statistics(path, config, config_counts["z_dim"])
    check_shapes(folder, expect_qwen_vae(config))
    return config_counts["z_dim"]


def _check_lists(path: Path, config: dict[str, Any]) -> None:
    for config_key, item_type in (("dim_mult", int), ("temperal_downsample", bool)):
        if not isinstance(config[config_key], list) or any(
            type(x) is not item_type for x in config[config_key]
        ):
            raise ConfigError(
                f"{path}: {config_key}={config[config_key]!r} must be a list of "
                f"{item_type.__name__}"
            )
    if len(config["dim_mult"]) != len(config["temperal_downsample"]) + 1:
        raise ConfigError(
            f"{path}: dim_mult={config['dim_mult']} must have one number more than "
            f"temperal_downsample={config['temperal_downsample']}"
        )
    if min(config["dim_mult"]) < 1 or config["attn_scales"]:
        raise ConfigError(
            f"{path}: dim_mult={config['dim_mult']} must be above 0, and "
            f"attn_scales={config['attn_scales']} empty"
        )


def _check_statistics(path: Path, config: dict[str, Any], num_channels: int) -> None:
    for config_key in _STATISTICS:
        values = config.get(config_key)
        is_number_list = isinstance(values, list) and all(type(x) in (int, float) for x in values)
        if not is_number_list or len(config[config_key]) != num_channels:
            raise ConfigError(
                f"{path}: {config_key} must be a list of z_dim={num_channels} numbers"
            )
    if min(config["latents_std"]) <= 0:
        raise ConfigError(f"{path}: latents_std={config['latents_std']} must be above 0")


def expect_qwen_vae(config: dict[str, Any]) -> Shapes:
    """Shape of each tensor; config: with all keys"""
    latent_channels = config["z_dim"]
    widths = [config["base_dim"] * factor for factor in config["dim_mult"]]
    return {
        **prefix_shapes("encoder", _expect_encoder(config, widths)),
        **_expect_causal_convolution(
            "quant_conv", 2 * latent_channels, 2 * latent_channels, kernel=1
        ),
        **_expect_causal_convolution("post_quant_conv", latent_channels, latent_channels, kernel=1),
        **prefix_shapes("decoder", _expect_decoder(config, widths)),
    }


def _expect_encoder(config: dict[str, Any], widths: list[int]) -> Shapes:
    down_block_shapes: list[Shapes] = []
    input_width = config["base_dim"]
    for index, block_width in enumerate(widths):
        down_block_shapes += [
            _expect_residual(input_width if not number else block_width, block_width)
            for number in range(config["num_res_blocks"])
        ]
        if index < len(config["temperal_downsample"]):
            resample_shapes = expect_convolution("resample.1", block_width, block_width)
            if config["temperal_downsample"][index]:
                resample_shapes |= expect_weight_and_bias(
                    "time_conv", block_width, block_width, 3, 1, 1
                )
            down_block_shapes.append(resample_shapes)
        input_width = block_width
    encoder_shapes = _expect_causal_convolution(
        "conv_in", config["base_dim"], config["input_channels"]
    )
    for number, block_shapes in enumerate(down_block_shapes):
        encoder_shapes |= prefix_shapes(f"down_blocks.{number}", block_shapes)
    return encoder_shapes | _expect_middle_and_output(input_width, 2 * config["z_dim"])


def _expect_decoder(config: dict[str, Any], widths: list[int]) -> Shapes:
    upsamples_time = config["temperal_downsample"][::-1]
    decoder_shapes = _expect_causal_convolution("conv_in", widths[-1], config["z_dim"])
    for index, (previous_width, block_width) in enumerate(pairwise([widths[-1], *widths[::-1]])):
        # Upsampling has halved them.
        input_width = previous_width // 2 if index else previous_width
        block_shapes: Shapes = {}
        for resnet_index in range(config["num_res_blocks"] + 1):
            block_shapes |= prefix_shapes(
                f"resnets.{resnet_index}",
                _expect_residual(block_width if resnet_index else input_width, block_width),
            )
        if index < len(upsamples_time):
            block_shapes |= expect_convolution(
                "upsamplers.0.resample.1", block_width // 2, block_width
            )
            if upsamples_time[index]:
                block_shapes |= expect_weight_and_bias(
                    "upsamplers.0.time_conv", 2 * block_width, block_width, 3, 1, 1
                )
        decoder_shapes |= prefix_shapes(f"up_blocks.{index}", block_shapes)
    end_shapes = _expect_middle_and_output(widths[0], config["input_channels"])
    return decoder_shapes | end_shapes | _expect_middle(widths[-1])


def _expect_middle_and_output(width: int, num_channels: int) -> Shapes:
    """The middle and the last layers, where both are as wide."""
    return {
        **_expect_middle(width),
        "norm_out.gamma": [width, 1, 1, 1],
        **_expect_causal_convolution("conv_out", num_channels, width),
    }


def _expect_middle(width: int) -> Shapes:
    return {
        **prefix_shapes("mid_block.resnets.0", _expect_residual(width, width)),
        "mid_block.attentions.0.norm.gamma": [width, 1, 1],
        **expect_weight_and_bias("mid_block.attentions.0.to_qkv", 3 * width, width, 1, 1),
        **expect_weight_and_bias("mid_block.attentions.0.proj", width, width, 1, 1),
        **prefix_shapes("mid_block.resnets.1", _expect_residual(width, width)),
    }


def _expect_residual(inner: int, width: int) -> Shapes:
    residual_shapes = {
        "norm1.gamma": [inner, 1, 1, 1],
        **_expect_causal_convolution("conv1", width, inner),
        "norm2.gamma": [width, 1, 1, 1],
        **_expect_causal_convolution("conv2", width, width),
    }
    return (
        residual_shapes
        if inner == width
        else residual_shapes | _expect_causal_convolution("conv_shortcut", width, inner, 1)
    )


def _expect_causal_convolution(name: str, width: int, inner: int, kernel: int = 3) -> Shapes:
    return expect_weight_and_bias(name, width, inner, kernel, kernel, kernel)
