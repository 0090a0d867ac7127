"""Names of Stable Diffusion's weights in its original single file, and diffusers' for the same.

Tables are from diffusers' layers to those of CompVis' latent-diffusion (1.x) and of open_clip
(2.x), as their modules number them: openaimodel.UNetModel, model.Encoder and Decoder. Sizes are
read from the names. Nothing heavy is imported.
"""

import re
from collections.abc import Iterable

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
XL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
XL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."

RESNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}

_UNET_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"middle_block\.(\d+)\.(.+)")
_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(.+)")
_VAE_MID = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_(\d+)\.(.+)")
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")


def count_unet_layers(names: Iterable[str]) -> int:
    """Resnets in each block of a UNet's first half, by where its first downsampler stands."""
    numbers = [
        int(n.split(".")[1]) for n in names if re.fullmatch(r"input_blocks\.\d+\.0\.op\..+", n)
    ]
    return min(numbers, default=3) - 1


def find_unet_name(name: str, num_layers: int) -> str | None:
    """diffusers' name of a UNet's weight, prefixes aside; None for one that it has not.

    num_layers: resnets in each block of the first half
    """
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    if middle := _UNET_MIDDLE.fullmatch(name):
        index, rest = int(middle[1]), middle[2]
        if index == 1:
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{index // 2}.{_resnet_rest(rest)}"
    match = _UNET_BLOCK.fullmatch(name)
    return _find_block_name(match, num_layers) if match else None


def _find_block_name(match: re.Match[str], num_layers: int) -> str:
    half, number, layer, rest = match.groups()
    if half == "input":  # the first is conv_in
        block, index = divmod(int(number) - 1, num_layers + 1)
        prefix = f"down_blocks.{block}"
    else:
        block, index = divmod(int(number), num_layers + 1)
        prefix = f"up_blocks.{block}"
    if rest.startswith("op."):
        return f"{prefix}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{prefix}.upsamplers.0.{rest}"
    if layer == "0":
        return f"{prefix}.resnets.{index}.{_resnet_rest(rest)}"
    return f"{prefix}.attentions.{index}.{rest}"


def _resnet_rest(rest: str) -> str:
    layer, _, leaf = rest.rpartition(".")
    ours = {theirs: name for name, theirs in RESNET_LAYERS.items()}
    return f"{ours.get(layer, layer)}.{leaf}"


def find_vae_name(name: str, num_blocks: int) -> str:
    """diffusers' name of a VAE's weight, prefixes aside. num_blocks: of each half"""
    if middle := _VAE_MID.fullmatch(name):
        side, kind, index, rest = middle.groups()
        if kind == "block":
            return f"{side}.mid_block.resnets.{int(index) - 1}.{rest}"
        layer, _, leaf = rest.rpartition(".")
        ours = {theirs: ours for ours, theirs in VAE_ATTENTION.items()}
        return f"{side}.mid_block.attentions.{int(index) - 1}.{ours.get(layer, layer)}.{leaf}"
    match = _VAE_BLOCK.fullmatch(name)
    if match is None:
        return name.replace(".norm_out.", ".conv_norm_out.")
    side, direction, number, rest = match.groups()
    # The decoder counts its blocks from the image's side.
    block = int(number) if direction == "down" else num_blocks - 1 - int(number)
    prefix = f"{side}.{direction}_blocks.{block}"
    if rest.startswith(f"{direction}sample."):
        return f"{prefix}.{direction}samplers.0.{rest.removeprefix(f'{direction}sample.')}"
    return f"{prefix}.resnets.{rest.removeprefix('block.')}".replace(
        "nin_shortcut", "conv_shortcut"
    )


def count_vae_blocks(names: Iterable[str]) -> int:
    """Blocks of a VAE's decoder."""
    return len({n.split(".")[2] for n in names if n.startswith("decoder.up.")})


def find_open_clip_names(name: str) -> list[str]:
    """transformers' names of an open_clip weight, prefixes aside; none for one that it has not.

    Three for a layer's in_proj, whose rows are those of queries, keys and values, in this order.
    """
    ends = {theirs: ours for ours, theirs in OPEN_CLIP_ENDS.items()}
    if name in ends:
        return [ends[name]]
    if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        return [f"encoder.layers.{match[1]}.self_attn.{x}_proj.{match[2]}" for x in "qkv"]
    match = _OPEN_CLIP_BLOCK.fullmatch(name)
    layers = {theirs: ours for ours, theirs in OPEN_CLIP_LAYERS.items()}
    if match is None or match[2] not in layers:
        return []
    return [f"encoder.layers.{match[1]}.{layers[match[2]]}.{match[3]}"]
