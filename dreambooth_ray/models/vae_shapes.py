"""Shapes that the configuration of an AutoencoderKL demands of its weights."""

from collections.abc import Mapping
from typing import Any

from dreambooth_ray.models.layer_shapes import (
    Shapes,
    expect_convolution,
    expect_resnet,
    expect_weight_and_bias,
    prefix_shapes,
)

# Blocks whose layers are known here; of others one tensor a resnet is.
_BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D")
# As diffusers once called the layers of the VAE's attention, and still reads them.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def expect_vae(config: Mapping[str, Any]) -> Shapes:
    """Of every tensor, where all blocks are of kinds that are known here. config: with defaults"""
    latent_channels = config["latent_channels"]
    shapes = {**_expect_vae_half(config, "encoder"), **_expect_vae_half(config, "decoder")}
    if config["use_quant_conv"]:
        shapes |= expect_convolution(
            "quant_conv", 2 * latent_channels, 2 * latent_channels, kernel=1
        )
    if config["use_post_quant_conv"]:
        shapes |= expect_convolution("post_quant_conv", latent_channels, latent_channels, kernel=1)
    return shapes


def _expect_vae_half(config: Mapping[str, Any], half: str) -> Shapes:
    is_vae_encoder = half == "encoder"
    block_direction = "down" if is_vae_encoder else "up"
    widths = list(config["block_out_channels"])[:: 1 if is_vae_encoder else -1]
    middle_block_width, latent_channels = (
        config["block_out_channels"][-1],
        config["latent_channels"],
    )
    in_channels, out_channels = (
        (config["in_channels"], 2 * latent_channels)
        if is_vae_encoder
        else (latent_channels, config["out_channels"])
    )
    shapes = {
        **expect_convolution("conv_in", widths[0], in_channels),
        **expect_weight_and_bias("conv_norm_out", widths[-1]),
        **expect_convolution("conv_out", out_channels, widths[-1]),
        **prefix_shapes("mid_block", _expect_middle_block(middle_block_width, config)),
    }
    block_kinds = list(config.get(f"{block_direction}_block_types", ()))
    resnets_per_block = config["layers_per_block"] + (0 if is_vae_encoder else 1)
    for index, (block_width, block_kind) in enumerate(zip(widths, block_kinds, strict=True)):
        previous_block_width = widths[max(index - 1, 0)]
        has_resampler = index < len(widths) - 1
        block_shapes = _expect_block(
            block_kind,
            previous_block_width,
            block_width,
            resnets_per_block,
            block_direction if has_resampler else "",
        )
        shapes |= prefix_shapes(f"{block_direction}_blocks.{index}", block_shapes)
    return prefix_shapes(half, shapes)


def _expect_middle_block(width: int, config: Mapping[str, Any]) -> Shapes:
    shapes: Shapes = {}
    for index in range(2):
        shapes |= prefix_shapes(f"resnets.{index}", expect_resnet(width, width))
    if config["mid_block_add_attention"]:
        shapes |= expect_weight_and_bias("attentions.0.group_norm", width)
        for layer_name in OLD_NAMES.values():
            shapes |= expect_weight_and_bias(f"attentions.0.{layer_name}", width, width)
    return shapes


def _expect_block(
    kind: str, previous_width: int, width: int, num_layers: int, direction: str
) -> Shapes:
    """direction: of the layer at its end; "" for a block without one"""
    shapes: Shapes = {}
    for index in range(num_layers):
        resnet_shapes = expect_resnet(width if index else previous_width, width)
        if kind not in _BLOCKS:
            resnet_shapes = {"conv2.weight": resnet_shapes["conv2.weight"]}
        shapes |= prefix_shapes(f"resnets.{index}", resnet_shapes)
    if direction and kind in _BLOCKS:
        shapes |= expect_convolution(f"{direction}samplers.0.conv", width, width)
    return shapes
