"""Shapes that the configuration of an AutoencoderKL demands of its weights."""

from collections.abc import Mapping
from typing import Any

from dreambooth_ray.models.layer_shapes import (
    Shapes,
    expect_affine,
    expect_convolution,
    expect_resnet,
    prefix_shapes,
)

# Blocks whose layers are known here; of others one tensor a resnet is.
_BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D")
# As diffusers once called the layers of the VAE's attention, and still reads them.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def expect_vae(config: Mapping[str, Any]) -> Shapes:
    """Of every tensor, where all blocks are of kinds that are known here. config: with defaults"""
    latents = config["latent_channels"]
    shapes = {**_expect_half(config, "encoder"), **_expect_half(config, "decoder")}
    if config["use_quant_conv"]:
        shapes |= expect_convolution("quant_conv", 2 * latents, 2 * latents, kernel=1)
    if config["use_post_quant_conv"]:
        shapes |= expect_convolution("post_quant_conv", latents, latents, kernel=1)
    return shapes


def _expect_half(config: Mapping[str, Any], half: str) -> Shapes:
    is_encoder = half == "encoder"
    direction = "down" if is_encoder else "up"
    widths = list(config["block_out_channels"])[:: 1 if is_encoder else -1]
    middle, latents = config["block_out_channels"][-1], config["latent_channels"]
    inner, outer = (
        (config["in_channels"], 2 * latents) if is_encoder else (latents, config["out_channels"])
    )
    shapes = {
        **expect_convolution("conv_in", widths[0], inner),
        **expect_affine("conv_norm_out", widths[-1]),
        **expect_convolution("conv_out", outer, widths[-1]),
        **prefix_shapes("mid_block", _expect_middle(middle, config)),
    }
    kinds = list(config.get(f"{direction}_block_types", ()))
    num_layers = config["layers_per_block"] + (0 if is_encoder else 1)
    for index, (width, kind) in enumerate(zip(widths, kinds, strict=True)):
        below = widths[max(index - 1, 0)]
        has_sampler = index < len(widths) - 1
        block = _expect_block(kind, below, width, num_layers, direction if has_sampler else "")
        shapes |= prefix_shapes(f"{direction}_blocks.{index}", block)
    return prefix_shapes(half, shapes)


def _expect_middle(width: int, config: Mapping[str, Any]) -> Shapes:
    shapes: Shapes = {}
    for index in range(2):
        shapes |= prefix_shapes(f"resnets.{index}", expect_resnet(width, width))
    if config["mid_block_add_attention"]:
        shapes |= expect_affine("attentions.0.group_norm", width)
        for name in OLD_NAMES.values():
            shapes |= expect_affine(f"attentions.0.{name}", width, width)
    return shapes


def _expect_block(kind: str, below: int, width: int, num_layers: int, direction: str) -> Shapes:
    """direction: of the layer at its end; "" for a block without one"""
    shapes: Shapes = {}
    for index in range(num_layers):
        resnet = expect_resnet(width if index else below, width)
        if kind not in _BLOCKS:
            resnet = {"conv2.weight": resnet["conv2.weight"]}
        shapes |= prefix_shapes(f"resnets.{index}", resnet)
    if direction and kind in _BLOCKS:
        shapes |= expect_convolution(f"{direction}samplers.0.conv", width, width)
    return shapes
