"""Shapes that the configurations of CLIP's families demand of their weights.

Nothing heavy is imported.
"""

import re
from collections.abc import Mapping
from typing import Any

from dreambooth_ray.models.layer_shapes import (
    Shapes,
    expect_affine,
    expect_clip_layer,
    prefix_shapes,
)
from dreambooth_ray.models.part_configs import find_part_kind
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
    part = find_part_kind(part)
    stored_shapes = {_convert_old_name(part, name): shape for name, shape in shapes.items()}
    if problem := _find_contradiction(part, config):
        return problem
    expected_shapes = _EXPECTED[part](config)
    for name, shape in expected_shapes.items():
        if stored_shapes.get(name) != shape:
            stored_shape = stored_shapes.get(name) or "no such tensor"
            return f"by config.json {name} is {shape}, and the weights have {stored_shape}"
    layer_weight_names = {name for name in stored_shapes if _LAYERS[part].fullmatch(name)}
    if surplus_names := sorted(layer_weight_names - expected_shapes.keys()):
        return f"the weights have {surplus_names[0]}, and by config.json there is no such layer"
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
        head_dims = repeat_per_block(config["attention_head_dim"], len(widths))
        if any(width % head_dim for width, head_dim in zip(widths, head_dims, strict=True)):
            return f"attention_head_dim={head_dims} does not divide block_out_channels={widths}"
    return ""


def _expect_text_encoder(config: Mapping[str, Any]) -> Shapes:
    width, inner_width = config["hidden_size"], config["intermediate_size"]
    layer_shapes = expect_clip_layer(width, inner_width)
    shapes: Shapes = {
        "embeddings.token_embedding.weight": [config["vocab_size"], width],
        "embeddings.position_embedding.weight": [config["max_position_embeddings"], width],
        **expect_affine("final_layer_norm", width),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= prefix_shapes(f"encoder.layers.{index}", layer_shapes)
    if "CLIPTextModelWithProjection" in (config.get("architectures") or ()):
        shapes["text_projection.weight"] = [config["projection_dim"], width]
    return shapes


_EXPECTED = {"unet": expect_unet, "vae": expect_vae, "text_encoder": _expect_text_encoder}
