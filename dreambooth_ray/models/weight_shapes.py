"""Shapes that a part's configuration demands of its weights, a tensor for each of its layers.

Enough of them to tell weights of another model, or of another size; nothing heavy is imported.
"""

import re
from collections.abc import Mapping
from typing import Any

Shapes = dict[str, list[int]]
# One tensor for each layer of a part: what is there and not expected is of another model as well.
_LAYERS = {
    "unet": re.compile(r"(down|up)_blocks\.\d+\.resnets\.\d+\.conv2\.weight"),
    "vae": re.compile(r"(encoder\.down|decoder\.up)_blocks\.\d+\.resnets\.\d+\.conv2\.weight"),
    "text_encoder": re.compile(r"encoder\.layers\.\d+\.mlp\.fc1\.weight"),
}


def find_mismatch(part: str, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> str:
    """What of the configuration does not go with stored weights; "" where all does.

    config: the part's, with defaults; shapes: of all stored tensors by name
    """
    stored_shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
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
    return {
        "conv_in.weight": [widths[0], config["in_channels"], 3, 3],
        "conv_out.weight": [config["out_channels"], widths[0], 3, 3],
        **_resnet_shapes("down", widths, down),
        **_resnet_shapes("up", widths[::-1], up),
    }


def _expect_vae(config: Mapping[str, Any]) -> Shapes:
    widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
    return {
        "encoder.conv_in.weight": [widths[0], config["in_channels"], 3, 3],
        "decoder.conv_in.weight": [widths[-1], config["latent_channels"], 3, 3],
        "decoder.conv_out.weight": [config["out_channels"], widths[0], 3, 3],
        **_resnet_shapes("encoder.down", widths, [layers] * len(widths)),
        **_resnet_shapes("decoder.up", widths[::-1], [layers + 1] * len(widths)),
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
