"""Shapes that the configurations of CLIP's families demand of their weights.

Nothing heavy is imported.
"""

import re
from collections.abc import Mapping
from typing import Any

from dreambooth_ray.models.layer_shapes import (
    Shapes,
    expect_clip_layer,
    expect_weight_and_bias,
    prefix_shapes,
)
from dreambooth_ray.models.part_configs import strip_part_number
from dreambooth_ray.models.unet_shapes import expect_unet, repeat_per_block
from dreambooth_ray.models.vae_shapes import OLD_NAMES, expect_vae

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


def find_mismatch(part: str, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> str:
    """What of the configuration does not go with stored weights; "" where all does.

    config: the part's, with defaults; shapes: of all stored tensors by name
    """
    part = strip_part_number(part)
    stored_shapes = {
        _convert_old_name(part, tensor_name): shape for tensor_name, shape in shapes.items()
    }
    if contradiction := _find_inconsistent_config_keys(part, config):
        return contradiction
    expected_shapes = _EXPECTED[part](config)
    for tensor_name, shape in expected_shapes.items():
        if stored_shapes.get(tensor_name) != shape:
            stored_shape = stored_shapes.get(tensor_name) or "no such tensor"
            return f"by config.json {tensor_name} is {shape}, and the weights have {stored_shape}"
    layer_weight_names = {
        tensor_name for tensor_name in stored_shapes if _LAYERS[part].fullmatch(tensor_name)
    }
    if unexpected_weight_names := sorted(layer_weight_names - expected_shapes.keys()):
        return (
            f"the weights have {unexpected_weight_names[0]}, and by config.json there is no such "
            "layer"
        )
    return ""


def _convert_old_name(part: str, name: str) -> str:
    """As today's libraries call a stored tensor."""
    if part == "text_encoder":
        return name.removeprefix("text_model.")
    layer_path, _, param_name = name.rpartition(".")
    parent_path, _, layer_name = layer_path.rpartition(".")
    if part == "vae" and layer_name in OLD_NAMES:
        return f"{parent_path}.{OLD_NAMES[layer_name]}.{param_name}"
    return name


def _find_inconsistent_config_keys(part: str, config: Mapping[str, Any]) -> str:
    """Keys of one configuration that exclude each other."""
    if part == "text_encoder":
        layer_width, num_heads = config["hidden_size"], config["num_attention_heads"]
        return (
            f"num_attention_heads={num_heads} does not divide {layer_width}"
            if layer_width % num_heads
            else ""
        )
    layer_widths, num_groups = config["block_out_channels"], config["norm_num_groups"]
    if any(layer_width % num_groups for layer_width in layer_widths):
        return f"norm_num_groups={num_groups} does not divide block_out_channels={layer_widths}"
    for config_key in ("down_block_types", "up_block_types"):
        if config_key in config and len(config[config_key]) != len(layer_widths):
            return f"{config_key} and block_out_channels are of different lengths"
    if part == "unet":
        head_dims = repeat_per_block(config["attention_head_dim"], len(layer_widths))
        if any(
            layer_width % head_dim
            for layer_width, head_dim in zip(layer_widths, head_dims, strict=True)
        ):
            return (
                f"attention_head_dim={head_dims} does not divide block_out_channels={layer_widths}"
            )
    return ""


def _expect_text_encoder(config: Mapping[str, Any]) -> Shapes:
    hidden_width, feed_forward_width = config["hidden_size"], config["intermediate_size"]
    layer_shapes = expect_clip_layer(hidden_width, feed_forward_width)
    shapes: Shapes = {
        "embeddings.token_embedding.weight": [config["vocab_size"], hidden_width],
        "embeddings.position_embedding.weight": [config["max_position_embeddings"], hidden_width],
        **expect_weight_and_bias("final_layer_norm", hidden_width),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= prefix_shapes(f"encoder.layers.{index}", layer_shapes)
    if "CLIPTextModelWithProjection" in (config.get("architectures") or ()):
        shapes["text_projection.weight"] = [config["projection_dim"], hidden_width]
    return shapes


_EXPECTED = {"unet": expect_unet, "vae": expect_vae, "text_encoder": _expect_text_encoder}
