"""Shapes that the configuration of a UNet2DConditionModel demands of its weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dreambooth_ray.models.layer_shapes import (
    Shapes,
    expect_affine,
    expect_convolution,
    expect_resnet,
    list_transformer_shapes,
    prefix_shapes,
)

# Blocks whose layers are known here; of others one tensor a resnet is.
_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")


class _Block(NamedTuple):
    """inner_widths: what each resnet takes; sampler: the layer behind it, if there is one"""

    prefix: str
    kind: str
    width: int
    inner_widths: list[int]
    depth: int
    text_width: int
    sampler: str | None


def spread(value: Any, count: int) -> list[int]:
    """One value for each block, where a configuration may give one for all."""
    return list(value) if isinstance(value, list) else [value] * count


def expect_unet(config: Mapping[str, Any]) -> Shapes:
    """Of every tensor, where all blocks are of kinds that are known here. config: with defaults"""
    widths = list(config["block_out_channels"])
    time_width = config.get("time_embedding_dim") or 4 * widths[0]
    shapes: Shapes = {
        **expect_convolution(
            "conv_in", widths[0], config["in_channels"], config.get("conv_in_kernel", 3)
        ),
        **expect_affine("time_embedding.linear_1", time_width, widths[0]),
        **expect_affine("time_embedding.linear_2", time_width, time_width),
        **expect_affine("conv_norm_out", widths[0]),
        **expect_convolution(
            "conv_out", config["out_channels"], widths[0], config.get("conv_out_kernel", 3)
        ),
    }
    if config.get("addition_embed_type") == "text_time":
        added_width = config["projection_class_embeddings_input_dim"]
        shapes |= expect_affine("add_embedding.linear_1", time_width, added_width)
        shapes |= expect_affine("add_embedding.linear_2", time_width, time_width)
    is_linear = bool(config.get("use_linear_projection"))
    # There the first attention of a block may take the text.
    is_odd = bool(config.get("only_cross_attention"))
    for block in _list_blocks(config, widths):
        shapes |= _expect_block(block, time_width, is_linear=is_linear, is_odd=is_odd)
    return shapes


def _list_blocks(config: Mapping[str, Any], widths: list[int]) -> list[_Block]:
    last = len(widths) - 1
    counts = spread(config["layers_per_block"], len(widths))
    depths = spread(config.get("transformer_layers_per_block", 1), len(widths))
    text_widths = spread(config["cross_attention_dim"], len(widths))
    kinds = {half: list(config.get(f"{half}_block_types", ())) for half in ("down", "up")}
    blocks = []
    for index, (width, kind) in enumerate(zip(widths, kinds["down"], strict=True)):
        inner_widths = [widths[max(index - 1, 0)], *[width] * (counts[index] - 1)]
        sampler = "downsamplers" if index < last else None
        blocks.append(
            _Block(
                f"down_blocks.{index}", kind, width, inner_widths, depths[index],
                text_widths[index], sampler,
            )
        )  # fmt: skip
    middle = _Block(
        "mid_block", "", widths[-1], [widths[-1]] * 2, depths[-1], text_widths[-1], None
    )
    blocks.append(middle)
    for index, (width, kind) in enumerate(zip(widths[::-1], kinds["up"], strict=True)):
        place = last - index
        # Each takes what its counterpart on the way down gave.
        below, beside = widths[min(place + 1, last)], widths[max(place - 1, 0)]
        ins = [below, *[width] * counts[place]]
        outs = [*[width] * counts[place], beside]
        inner_widths = [first + second for first, second in zip(ins, outs, strict=True)]
        sampler = "upsamplers" if index < last else None
        blocks.append(
            _Block(
                f"up_blocks.{index}", kind, width, inner_widths, depths[place],
                text_widths[place], sampler,
            )
        )  # fmt: skip
    return blocks


def _expect_block(block: _Block, time_width: int, *, is_linear: bool, is_odd: bool) -> Shapes:
    shapes: Shapes = {}
    is_middle = not block.kind
    for index, inner_width in enumerate(block.inner_widths):
        resnet = expect_resnet(inner_width, block.width, time_width)
        if not is_middle and block.kind not in _BLOCKS:
            resnet = {"conv2.weight": resnet["conv2.weight"]}
        shapes |= prefix_shapes(f"resnets.{index}", resnet)
    if is_middle or block.kind.startswith("CrossAttn"):
        transformer = list_transformer_shapes(
            block.width, block.text_width, block.depth, is_linear=is_linear
        )
        if is_odd:
            transformer = {n: s for n, s in transformer.items() if ".attn" not in n}
        for index in range(1 if is_middle else len(block.inner_widths)):
            shapes |= prefix_shapes(f"attentions.{index}", transformer)
    if block.sampler and block.kind in _BLOCKS:
        shapes |= expect_convolution(f"{block.sampler}.0.conv", block.width, block.width)
    return prefix_shapes(block.prefix, shapes)
