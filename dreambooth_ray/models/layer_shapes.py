"""Shapes of the weights of diffusers' and CLIP's layers, by the names that they have there."""

from collections.abc import Mapping

Shapes = dict[str, list[int]]


def prefix_shapes(prefix: str, shapes: Mapping[str, list[int]]) -> Shapes:
    """The same under `prefix.`."""
    return {f"{prefix}.{tensor_name}": shape for tensor_name, shape in shapes.items()}


def expect_weight_and_bias(name: str, *shape: int) -> Shapes:
    """A layer with a bias, or a norm: its weight's shape, whose first axis is the bias's."""
    return {f"{name}.weight": list(shape), f"{name}.bias": [shape[0]]}


def expect_convolution(name: str, width: int, inner: int, kernel: int = 3) -> Shapes:
    """From `inner` to `width` channels."""
    return expect_weight_and_bias(name, width, inner, kernel, kernel)


def expect_resnet(inner: int, width: int, time_width: int | None = None) -> Shapes:
    """ResnetBlock2D from `inner` to `width` channels. time_width: where it is told the time"""
    resnet_shapes = {
        **expect_weight_and_bias("norm1", inner),
        **expect_convolution("conv1", width, inner),
        **expect_weight_and_bias("norm2", width),
        **expect_convolution("conv2", width, width),
    }
    if time_width is not None:
        resnet_shapes |= expect_weight_and_bias("time_emb_proj", width, time_width)
    if inner != width:
        resnet_shapes |= expect_convolution("conv_shortcut", width, inner, kernel=1)
    return resnet_shapes


def list_transformer_shapes(width: int, text_width: int, depth: int, *, is_linear: bool) -> Shapes:
    """Transformer2DModel of so many blocks. is_linear: its ends are no convolutions"""
    block_shapes: Shapes = {
        **{f"attn1.to_{x}.weight": [width, width] for x in "qkv"},
        "attn2.to_q.weight": [width, width],
        **{f"attn2.to_{x}.weight": [width, text_width] for x in "kv"},
        **expect_weight_and_bias("ff.net.0.proj", 8 * width, width),
        **expect_weight_and_bias("ff.net.2", width, 4 * width),
    }
    for layer_name in ("norm1", "norm2", "norm3"):
        block_shapes |= expect_weight_and_bias(layer_name, width)
    for layer_name in ("attn1.to_out.0", "attn2.to_out.0"):
        block_shapes |= expect_weight_and_bias(layer_name, width, width)
    projection_shapes: Shapes = {}
    for layer_name in ("proj_in", "proj_out"):
        kernel_size = () if is_linear else (1, 1)
        projection_shapes |= expect_weight_and_bias(layer_name, width, width, *kernel_size)
    transformer_shapes = {**expect_weight_and_bias("norm", width), **projection_shapes}
    for index in range(depth):
        transformer_shapes |= prefix_shapes(f"transformer_blocks.{index}", block_shapes)
    return transformer_shapes


def expect_clip_layer(width: int, inner_width: int) -> Shapes:
    """CLIPEncoderLayer."""
    layer_shapes = {
        **expect_weight_and_bias("mlp.fc1", inner_width, width),
        **expect_weight_and_bias("mlp.fc2", width, inner_width),
    }
    for layer_name in ("layer_norm1", "layer_norm2"):
        layer_shapes |= expect_weight_and_bias(layer_name, width)
    for layer_name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer_shapes |= expect_weight_and_bias(f"self_attn.{layer_name}", width, width)
    return layer_shapes
