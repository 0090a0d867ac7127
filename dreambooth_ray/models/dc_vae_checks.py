"""Whether a folder holds an AutoencoderDC of Sana's form, by its files alone."""

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

# Of AutoencoderDC, where a configuration names none.
_COUNTS = {"in_channels": 3, "latent_channels": 32, "attention_head_dim": 32}
_WIDTHS = [128, 256, 512, 512, 1024, 1024]
_DEFAULTS = {
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "scaling_factor": 1.0,
}
# Sana's form; others, of DC-AEs for other models, have other layers.
_FORM = {
    "upsample_block_type": "interpolate",
    "downsample_block_type": "conv",
    "decoder_norm_types": "rms_norm",
}
_BLOCKS = ("ResBlock", "EfficientViTBlock")
_HALVES = ("encoder", "decoder")
_EXPANSION = 4  # of an EfficientViTBlock's convolutions


def read_dc_vae_config(folder: Path) -> dict[str, Any]:
    """Its configuration with the defaults of diffusers' class; raises: ConfigError"""
    return _COUNTS | _DEFAULTS | read_json(folder / "config.json")


def check_dc_vae(folder: Path) -> int:
    """The channels of its latents; raises: ConfigError naming the file"""
    path, config = folder / "config.json", read_dc_vae_config(folder)
    config_counts = select_positive_counts(path, config, *_COUNTS)
    for key, expected_value in _FORM.items():
        if config[key] != expected_value:
            raise ConfigError(
                f"{path}: {key}={config[key]!r}, and Sana's VAE has {expected_value!r}; take "
                "that of Sana"
            )
    scaling_factor = config["scaling_factor"]
    if type(scaling_factor) not in (int, float) or not scaling_factor > 0:
        raise ConfigError(f"{path}: scaling_factor={scaling_factor!r} must be a number above 0")
    _check_block_lists(path, config)
    check_shapes(folder, list_dc_vae_shapes(config))
    return config_counts["latent_channels"]


def _check_block_lists(path: Path, config: dict[str, Any]) -> None:
    block_counts = {
        coder: len(_list_or_default(config[f"{coder}_block_out_channels"])) for coder in _HALVES
    }
    if len(set(block_counts.values())) != 1:
        raise ConfigError(f"{path}: encoder and decoder have different numbers of blocks")
    for coder in _HALVES:
        for key, is_valid_value in (
            ("block_out_channels", lambda x: type(x) is int and x > 0),
            ("layers_per_block", lambda x: type(x) is int and x > 0),
            (
                "qkv_multiscales",
                lambda x: all(type(y) is int and y > 0 for y in _list_or_default(x, [0])),
            ),
            ("block_types", lambda x: x in _BLOCKS),
        ):
            config_values = config[f"{coder}_{key}"]
            block_values = (
                [config_values] * block_counts[coder]
                if isinstance(config_values, str)
                else _list_or_default(config_values)
            )
            if (
                not block_values
                or len(block_values) != block_counts[coder]
                or not all(map(is_valid_value, block_values))
            ):
                raise ConfigError(
                    f"{path}: {coder}_{key}={config_values!r} is not what Sana's VAE has, one for "
                    f"each of {block_counts[coder]} blocks"
                )
    encoder_width, latent_channels = (
        config["encoder_block_out_channels"][-1],
        config["latent_channels"],
    )
    if encoder_width % latent_channels:
        raise ConfigError(
            f"{path}: latent_channels={latent_channels} does not divide {encoder_width}"
        )


def _list_or_default(value: Any, otherwise: list[Any] | None = None) -> list[Any]:
    return value if isinstance(value, list) else otherwise or []


def list_dc_vae_shapes(config: dict[str, Any]) -> Shapes:
    """Shape of each tensor; config: with all keys"""
    image_channels, latent_channels = config["in_channels"], config["latent_channels"]
    encoder_widths, decoder_widths = (config[f"{coder}_block_out_channels"] for coder in _HALVES)
    return {
        **expect_convolution("encoder.conv_in", encoder_widths[0], image_channels),
        **prefix_shapes("encoder.down_blocks", _expect_coder_shapes(config, "encoder")),
        **expect_convolution("encoder.conv_out", latent_channels, encoder_widths[-1]),
        **expect_convolution("decoder.conv_in", decoder_widths[-1], latent_channels),
        **prefix_shapes("decoder.up_blocks", _expect_coder_shapes(config, "decoder")),
        **expect_weight_and_bias("decoder.norm_out", decoder_widths[0]),
        **expect_convolution("decoder.conv_out", image_channels, decoder_widths[0]),
    }


def _expect_coder_shapes(config: dict[str, Any], coder: str) -> Shapes:
    block_widths, block_types = (
        config[f"{coder}_block_out_channels"],
        config[f"{coder}_block_types"],
    )
    block_types = [block_types] * len(block_widths) if isinstance(block_types, str) else block_types
    # Each of the encoder's ends in one that halves sides, each of the decoder's begins in one that
    # doubles them, but for the last.
    width_pairs = [*pairwise(block_widths), None]
    shapes: Shapes = {}
    for block_index, (block_width, block_type, width_pair) in enumerate(
        zip(block_widths, block_types, width_pairs, strict=True)
    ):
        kernel_sizes = config[f"{coder}_qkv_multiscales"][block_index]
        layer_shapes = (
            _expect_residual(block_width)
            if block_type == "ResBlock"
            else _expect_attention(block_width, config["attention_head_dim"], kernel_sizes)
        )
        block_layer_shapes = [layer_shapes] * config[f"{coder}_layers_per_block"][block_index]
        if width_pair is not None and coder == "encoder":
            block_layer_shapes = [
                *block_layer_shapes,
                expect_convolution("conv", width_pair[1], width_pair[0]),
            ]
        elif width_pair is not None:
            block_layer_shapes = [
                expect_convolution("conv", width_pair[0], width_pair[1]),
                *block_layer_shapes,
            ]
        for layer_index, expected_shapes in enumerate(block_layer_shapes):
            shapes |= prefix_shapes(f"{block_index}.{layer_index}", expected_shapes)
    return shapes


def _expect_residual(width: int) -> Shapes:
    return {
        **expect_convolution("conv1", width, width),
        "conv2.weight": [width, width, 3, 3],
        **expect_weight_and_bias("norm", width),
    }


def _expect_attention(width: int, head: int, kernel_sizes: list[int]) -> Shapes:
    attention_width, expanded_width = width // head * head, _EXPANSION * width
    shapes: Shapes = {f"attn.to_{x}.weight": [attention_width, width] for x in "qkv"}
    for scale_index, kernel_size in enumerate(kernel_sizes):
        scale_name = f"attn.to_qkv_multiscale.{scale_index}"
        shapes[f"{scale_name}.proj_in.weight"] = [3 * attention_width, 1, kernel_size, kernel_size]
        shapes[f"{scale_name}.proj_out.weight"] = [3 * attention_width, head, 1, 1]
    return shapes | {
        "attn.to_out.weight": [width, attention_width * (1 + len(kernel_sizes))],
        **expect_weight_and_bias("attn.norm_out", width),
        **expect_convolution("conv_out.conv_inverted", 2 * expanded_width, width, kernel=1),
        **expect_convolution("conv_out.conv_depth", 2 * expanded_width, 1),
        "conv_out.conv_point.weight": [width, expanded_width, 1, 1],
        **expect_weight_and_bias("conv_out.norm", width),
    }
