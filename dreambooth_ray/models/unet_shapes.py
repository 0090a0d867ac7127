"""Shapes that the configuration of a UNet2DConditionModel demands of its weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dreambooth_ray.models.layer_shapes import (
    Shapes,
    expect_convolution,
    expect_resnet,
    expect_weight_and_bias,
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


def repeat_per_block(value: Any, count: int) -> list[int]:
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
        **expect_weight_and_bias("time_embedding.linear_1", time_width, widths[0]),
        **expect_weight_and_bias("time_embedding.linear_2", time_width, time_width),
        **expect_weight_and_bias("conv_norm_out", widths[0]),
        **expect_convolution(
            "conv_out", config["out_channels"], widths[0], config.get("conv_out_kernel", 3)
        ),
    }
    if config.get("addition_embed_type") == "text_time":
        added_width = config["projection_class_embeddings_input_dim"]
        shapes |= expect_weight_and_bias("add_embedding.linear_1", time_width, added_width)
        shapes |= expect_weight_and_bias("add_embedding.linear_2", time_width, time_width)
    uses_linear_projection = bool(config.get("use_linear_projection"))
    # There the first attention of a block may take the text.
    has_only_cross_attention = bool(config.get("only_cross_attention"))
    for block in _list_blocks(config, widths):
        shapes |= _expect_block(
            block,
            time_width,
            uses_linear_projection=uses_linear_projection,
            has_only_cross_attention=has_only_cross_attention,
        )
    return shapes


def _list_blocks(config: Mapping[str, Any], widths: list[int]) -> list[_Block]:
    last_level_index = len(widths) - 1
    resnet_counts = repeat_per_block(config["layers_per_block"], len(widths))
    transformer_depths = repeat_per_block(
        config.get("transformer_layers_per_block", 1), len(widths)
    )
    cross_attention_widths = repeat_per_block(config["cross_attention_dim"], len(widths))
    block_kinds = {half: list(config.get(f"{half}_block_types", ())) for half in ("down", "up")}
    blocks = []
    for index, (block_width, block_kind) in enumerate(
        zip(widths, block_kinds["down"], strict=True)
    ):
        resnet_in_widths = [widths[max(index - 1, 0)], *[block_width] * (resnet_counts[index] - 1)]
        resampler_name = "downsamplers" if index < last_level_index else None
        blocks.append(
            _Block(
                f"down_blocks.{index}", block_kind, block_width, resnet_in_widths,
                transformer_depths[index], cross_attention_widths[index], resampler_name,
            )
        )  # fmt: skip
    middle_block = _Block(
        "mid_block",
        "",
        widths[-1],
        [widths[-1]] * 2,
        transformer_depths[-1],
        cross_attention_widths[-1],
        None,
    )
    blocks.append(middle_block)
    for index, (block_width, block_kind) in enumerate(
        zip(widths[::-1], block_kinds["up"], strict=True)
    ):
        level_index = last_level_index - index
        # Each takes what its counterpart on the way down gave.
        lower_width, upper_width = (
            widths[min(level_index + 1, last_level_index)],
            widths[max(level_index - 1, 0)],
        )
        main_widths = [lower_width, *[block_width] * resnet_counts[level_index]]
        skip_widths = [*[block_width] * resnet_counts[level_index], upper_width]
        resnet_in_widths = [
            first + second for first, second in zip(main_widths, skip_widths, strict=True)
        ]
        resampler_name = "upsamplers" if index < last_level_index else None
        blocks.append(
            _Block(
                f"up_blocks.{index}", block_kind, block_width, resnet_in_widths,
                transformer_depths[level_index], cross_attention_widths[level_index],
                resampler_name,
            )
        )  # fmt: skip
    return blocks


def _expect_block(
    block: _Block, time_width: int, *, uses_linear_projection: bool, has_only_cross_attention: bool
) -> Shapes:
    shapes: Shapes = {}
    is_middle = not block.kind
    for index, resnet_in_width in enumerate(block.inner_widths):
        resnet_shapes = expect_resnet(resnet_in_width, block.width, time_width)
        if not is_middle and block.kind not in _BLOCKS:
            resnet_shapes = {"conv2.weight": resnet_shapes["conv2.weight"]}
        shapes |= prefix_shapes(f"resnets.{index}", resnet_shapes)
    if is_middle or block.kind.startswith("CrossAttn"):
        transformer_shapes = list_transformer_shapes(
            block.width, block.text_width, block.depth, is_linear=uses_linear_projection
        )
        if has_only_cross_attention:
            transformer_shapes = {n: s for n, s in transformer_shapes.items() if ".attn" not in n}
        for index in range(1 if is_middle else len(block.inner_widths)):
            shapes |= prefix_shapes(f"attentions.{index}", transformer_shapes)
    if block.sampler and block.kind in _BLOCKS:
        shapes |= expect_convolution(f"{block.sampler}.0.conv", block.width, block.width)
    return prefix_shapes(block.prefix, shapes)
