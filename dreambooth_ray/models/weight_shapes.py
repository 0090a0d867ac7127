"""Shapes that a part's configuration demands of its weights, a tensor for each of its layers.

Enough of them to tell weights of another model, or of another size; nothing heavy is imported.
"""

import re
from collections.abc import Mapping
from typing import Any

Shapes = dict[str, list[int]]
# One tensor for each layer of a part: what is there and not expected is of another model as well.
_LAYERS = {
    "unet": re.compile(
        r"(down|up)_blocks\.\d+\.resnets\.\d+\.conv2\.weight|.+\.transformer_blocks\.\d+\.attn2\.to_k\.weight"
    ),
    "vae": re.compile(
        r"(encoder\.down|decoder\.up)_blocks\.\d+\.resnets\.\d+\.conv2\.weight|(post_)?quant_conv\.weight"
        r"|(en|de)coder\.mid_block\.attentions\.0\.group_norm\.weight"
    ),
    "text_encoder": re.compile(r"encoder\.layers\.\d+\.mlp\.fc1\.weight"),
}
# Of attention in autoencoders.
_OLD_NAMES = {
    ".attentions.0.query.": ".attentions.0.to_q.",
    ".attentions.0.key.": ".attentions.0.to_k.",
    ".attentions.0.value.": ".attentions.0.to_v.",
    ".attentions.0.proj_attn.": ".attentions.0.to_out.0.",
}


def find_mismatch(part: str, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> str:
    """What of the configuration does not go with stored weights; "" where all does.

    config: the part's, with defaults; shapes: of all stored tensors by name
    """
    stored_shapes = {_modern_name(name): shape for name, shape in shapes.items()}
    if problem := _find_contradiction(part, config):
        return problem
    expected_shapes = _EXPECTED[part](config)
    for name, shape in expected_shapes.items():
        if stored_shapes.get(name) != shape:
            stored = stored_shapes.get(name) or "no such tensor"
            return f"by config.json {name} is {shape}, and the weights have {stored}"
    layers = {name for name in stored_shapes if _LAYERS[part].fullmatch(name)}
    if surplus := sorted(layers - expected_shapes.keys()):
        return f"the weights have {surplus[0]}, and by config.json there is no such layer"
    return ""


def _modern_name(name: str) -> str:
    """As today's libraries name it: text models had a level more, attention other names."""
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def _find_contradiction(part: str, config: Mapping[str, Any]) -> str:
    """Keys of one configuration that exclude each other."""
    if part == "text_encoder":
        width, num_heads = config["hidden_size"], config["num_attention_heads"]
        return (
            f"num_attention_heads={num_heads} does not divide {width}" if width % num_heads else ""
        )
    widths, num_groups = config["block_out_channels"], config["norm_num_groups"]
    if any(width % num_groups for width in widths):
        return f"norm_num_groups={num_groups} does not divide block_out_channels={widths}"
    for key in ("down_block_types", "up_block_types"):
        if key in config and len(config[key]) != len(widths):
            return f"{key} and block_out_channels are of different lengths"
    if part == "unet":
        head_dims = _spread(config["attention_head_dim"], len(widths))
        if any(width % head_dim for width, head_dim in zip(widths, head_dims, strict=True)):
            return f"attention_head_dim={head_dims} does not divide block_out_channels={widths}"
    return ""


def _spread(value: Any, count: int) -> list[int]:
    return list(value) if isinstance(value, list) else [value] * count


def _resnet_shapes(prefix: str, widths: list[int], counts: list[int]) -> Shapes:
    return {
        f"{prefix}_blocks.{block}.resnets.{layer}.conv2.weight": [width, width, 3, 3]
        for block, (width, count) in enumerate(zip(widths, counts, strict=True))
        for layer in range(count)
    }


def _expect_unet(config: Mapping[str, Any]) -> Shapes:
    widths = list(config["block_out_channels"])
    down = _spread(config["layers_per_block"], len(widths))
    up = [count + 1 for count in reversed(down)]
    kernels = [[config.get(key, 3)] * 2 for key in ("conv_in_kernel", "conv_out_kernel")]
    time_width = config.get("time_embedding_dim") or 4 * widths[0]
    return {
        "conv_in.weight": [widths[0], config["in_channels"], *kernels[0]],
        "conv_out.weight": [config["out_channels"], widths[0], *kernels[1]],
        "time_embedding.linear_1.weight": [time_width, widths[0]],
        **_resnet_shapes("down", widths, down),
        **_resnet_shapes("up", widths[::-1], up),
        **_expect_attention(config, widths, down, up),
    }


def _expect_attention(
    config: Mapping[str, Any], widths: list[int], down: list[int], up: list[int]
) -> Shapes:
    """Of transformers: how each begins, and a layer of each of their blocks.

    down, up: numbers of them in a block of the one half and of the other
    """
    num_blocks = len(widths)
    depths = _spread(config.get("transformer_layers_per_block", 1), num_blocks)
    text_widths = _spread(config["cross_attention_dim"], num_blocks)
    groups = [("mid_block", widths[-1], 1, depths[-1], text_widths[-1])]
    for half, counts, order in (("down", down, 1), ("up", up, -1)):
        types = config.get(f"{half}_block_types", ())
        blocks = zip(widths[::order], counts, depths[::order], text_widths[::order], strict=True)
        groups += [
            (f"{half}_blocks.{index}", *block)
            for index, (kind, block) in enumerate(zip(types, blocks, strict=False))
            if kind.startswith("CrossAttn")
        ]
    shapes = {}
    for prefix, width, count, depth, text_width in groups:
        for name in (f"{prefix}.attentions.{layer}" for layer in range(count)):
            is_linear = bool(config.get("use_linear_projection"))
            shapes[f"{name}.proj_in.weight"] = [width, width, *([] if is_linear else [1, 1])]
            for block in range(depth):
                shapes[f"{name}.transformer_blocks.{block}.attn2.to_k.weight"] = [width, text_width]
    return shapes


def _expect_vae(config: Mapping[str, Any]) -> Shapes:
    widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
    latents = config["latent_channels"]
    optional_shapes = {
        "quant_conv.weight": ("use_quant_conv", [2 * latents, 2 * latents, 1, 1]),
        "post_quant_conv.weight": ("use_post_quant_conv", [latents, latents, 1, 1]),
        **{
            f"{half}.mid_block.attentions.0.{layer}.weight": ("mid_block_add_attention", shape)
            for half in ("encoder", "decoder")
            for layer, shape in (
                ("group_norm", [widths[-1]]),
                *((name, [widths[-1]] * 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
            )
        },
    }
    return {
        "encoder.conv_in.weight": [widths[0], config["in_channels"], 3, 3],
        "decoder.conv_in.weight": [widths[-1], latents, 3, 3],
        "decoder.conv_out.weight": [config["out_channels"], widths[0], 3, 3],
        **_resnet_shapes("encoder.down", widths, [layers] * len(widths)),
        **_resnet_shapes("decoder.up", widths[::-1], [layers + 1] * len(widths)),
        **{name: shape for name, (key, shape) in optional_shapes.items() if config[key]},
    }


def _expect_text_encoder(config: Mapping[str, Any]) -> Shapes:
    width, inner_width = config["hidden_size"], config["intermediate_size"]
    return {
        "embeddings.token_embedding.weight": [config["vocab_size"], width],
        "embeddings.position_embedding.weight": [config["max_position_embeddings"], width],
        **{
            f"encoder.layers.{layer}.mlp.fc1.weight": [inner_width, width]
            for layer in range(config["num_hidden_layers"])
        },
    }


_EXPECTED = {"unet": _expect_unet, "vae": _expect_vae, "text_encoder": _expect_text_encoder}
