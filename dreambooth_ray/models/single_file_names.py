"""Names of Stable Diffusion's weights in its original single file, and diffusers' for the same.

Tables are from diffusers' layers to those of CompVis' latent-diffusion (1.x) and of open_clip
(2.x), as their modules number them: openaimodel.UNetModel, model.Encoder and Decoder. Stable
Diffusion XL's has both text encoders (Stability AI's generative-models, sgm). Sizes are read from
the names. Nothing heavy is imported.
"""

import re
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
XL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
XL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."


class SingleFileEncoderNames(NamedTuple):
    """Whose names a text encoder's weights have in a single file, and before them."""

    layers: Literal["clip", "open_clip"]
    prefix: str


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

_BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)"
)
_MID = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)")
_UNET_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"middle_block\.(\d+)\.(.+)")
_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(.+)")
_VAE_MID = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_(\d+)\.(.+)")
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")


def count_resnets_per_block(names: Iterable[str]) -> int:
    """Resnets in each block of a UNet's first half, by where its first downsampler stands."""
    downsampler_indices = [
        int(n.split(".")[1]) for n in names if re.fullmatch(r"input_blocks\.\d+\.0\.op\..+", n)
    ]
    return min(downsampler_indices, default=3) - 1


class UNetBlocks(NamedTuple):
    """num_layers: resnets in each block of the first half; attended: blocks up with attention"""

    num_layers: int
    attended: Collection[int]

    @classmethod
    def of_names(cls, names: Collection[str]) -> "UNetBlocks":
        """By the names of all weights."""
        resnet_indices = {n.split(".")[3] for n in names if n.startswith("down_blocks.0.resnets.")}
        attention_blocks = {
            int(n.split(".")[1]) for n in names if re.match(r"up_blocks\.\d+\.att", n)
        }
        return cls(len(resnet_indices), attention_blocks)


def find_original_unet_name(name: str, blocks: UNetBlocks) -> str:
    """The original name of a UNet's weight, without prefix; name: diffusers'

    raises: ValueError for a name that no such UNet has
    """
    for diffusers_prefix, original_prefix in UNET_ENDS.items():
        if name.startswith(f"{diffusers_prefix}."):
            return original_prefix + name.removeprefix(diffusers_prefix)
    if mid_match := _MID.fullmatch(name):
        sublayer_kind, layer_index, suffix = mid_match.groups()
        if sublayer_kind == "attentions":
            return f"middle_block.{2 * int(layer_index) + 1}.{suffix}"
        return f"middle_block.{2 * int(layer_index)}.{_find_original_resnet_name(suffix)}"
    if block_match := _BLOCK.fullmatch(name):
        return _find_original_block_name(block_match, blocks)
    raise ValueError(f"{name} is no weight of a Stable Diffusion UNet")


def _find_original_block_name(match: re.Match[str], blocks: UNetBlocks) -> str:
    direction, block_number, sublayer_kind, layer_number, suffix = match.groups()
    block_index, layer_index = int(block_number), int(layer_number)
    if direction == "down":
        # Each block's resnets, then its downsampler; block 0 is conv_in.
        first_input_block = 1 + block_index * (blocks.num_layers + 1)
        if sublayer_kind == "downsamplers":
            original_suffix = suffix.replace("conv", "op", 1)
            return f"input_blocks.{first_input_block + blocks.num_layers}.0.{original_suffix}"
        block_name = f"input_blocks.{first_input_block + layer_index}"
    else:
        layers_per_block = blocks.num_layers + 1
        if sublayer_kind == "upsamplers":
            # Behind the last resnet, and behind its attention where there is one.
            module_index = 2 if block_index in blocks.attended else 1
            last_output_block = (block_index + 1) * layers_per_block - 1
            return f"output_blocks.{last_output_block}.{module_index}.{suffix}"
        block_name = f"output_blocks.{block_index * layers_per_block + layer_index}"
    if sublayer_kind == "attentions":
        return f"{block_name}.1.{suffix}"
    return f"{block_name}.0.{_find_original_resnet_name(suffix)}"


def _find_original_resnet_name(suffix: str) -> str:
    layer, _, leaf = suffix.rpartition(".")
    return f"{RESNET_LAYERS[layer]}.{leaf}" if layer else RESNET_LAYERS[leaf]


def find_diffusers_unet_name(name: str, num_layers: int) -> str | None:
    """diffusers' name of a UNet's weight, prefixes aside; None for one that it has not.

    num_layers: resnets in each block of the first half
    """
    for diffusers_prefix, original_prefix in UNET_ENDS.items():
        if name.startswith(f"{original_prefix}."):
            return diffusers_prefix + name.removeprefix(original_prefix)
    if mid_match := _UNET_MIDDLE.fullmatch(name):
        module_index, rest = int(mid_match[1]), mid_match[2]
        if module_index == 1:
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{module_index // 2}.{_find_diffusers_resnet_name(rest)}"
    match = _UNET_BLOCK.fullmatch(name)
    return _find_diffusers_block_name(match, num_layers) if match else None


def _find_diffusers_block_name(match: re.Match[str], num_layers: int) -> str:
    input_or_output, block_number, module_number, rest = match.groups()
    if input_or_output == "input":  # the first is conv_in
        block_index, layer_index = divmod(int(block_number) - 1, num_layers + 1)
        block_prefix = f"down_blocks.{block_index}"
    else:
        block_index, layer_index = divmod(int(block_number), num_layers + 1)
        block_prefix = f"up_blocks.{block_index}"
    if rest.startswith("op."):
        return f"{block_prefix}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{block_prefix}.upsamplers.0.{rest}"
    if module_number == "0":
        return f"{block_prefix}.resnets.{layer_index}.{_find_diffusers_resnet_name(rest)}"
    return f"{block_prefix}.attentions.{layer_index}.{rest}"


def _find_diffusers_resnet_name(rest: str) -> str:
    layer, _, leaf = rest.rpartition(".")
    diffusers_layers = {
        theirs: diffusers_layer for diffusers_layer, theirs in RESNET_LAYERS.items()
    }
    return f"{diffusers_layers.get(layer, layer)}.{leaf}"


def find_diffusers_vae_name(name: str, num_blocks: int) -> str:
    """diffusers' name of a VAE's weight, prefixes aside. num_blocks: of each half"""
    if mid_match := _VAE_MID.fullmatch(name):
        vae_half, sublayer_kind, layer_number, rest = mid_match.groups()
        if sublayer_kind == "block":
            return f"{vae_half}.mid_block.resnets.{int(layer_number) - 1}.{rest}"
        layer, _, leaf = rest.rpartition(".")
        diffusers_names = {theirs: ours for ours, theirs in VAE_ATTENTION.items()}
        return (
            f"{vae_half}.mid_block.attentions.{int(layer_number) - 1}."
            f"{diffusers_names.get(layer, layer)}.{leaf}"
        )
    match = _VAE_BLOCK.fullmatch(name)
    if match is None:
        return name.replace(".norm_out.", ".conv_norm_out.")
    vae_half, direction, block_number, rest = match.groups()
    # The decoder counts its blocks from the image's side.
    block_index = int(block_number) if direction == "down" else num_blocks - 1 - int(block_number)
    block_prefix = f"{vae_half}.{direction}_blocks.{block_index}"
    if rest.startswith(f"{direction}sample."):
        return f"{block_prefix}.{direction}samplers.0.{rest.removeprefix(f'{direction}sample.')}"
    return f"{block_prefix}.resnets.{rest.removeprefix('block.')}".replace(
        "nin_shortcut", "conv_shortcut"
    )


def count_vae_blocks(names: Iterable[str]) -> int:
    """Blocks of a VAE's decoder."""
    return len({n.split(".")[2] for n in names if n.startswith("decoder.up.")})


def find_transformers_clip_names(name: str) -> list[str]:
    """transformers' names of an open_clip weight, prefixes aside; none for one that it has not.

    Three for a layer's in_proj, whose rows are those of queries, keys and values, in this order.
    """
    end_names = {theirs: ours for ours, theirs in OPEN_CLIP_ENDS.items()}
    if name in end_names:
        return [end_names[name]]
    if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        return [f"encoder.layers.{match[1]}.self_attn.{x}_proj.{match[2]}" for x in "qkv"]
    match = _OPEN_CLIP_BLOCK.fullmatch(name)
    layer_names = {theirs: ours for ours, theirs in OPEN_CLIP_LAYERS.items()}
    if match is None or match[2] not in layer_names:
        return []
    return [f"encoder.layers.{match[1]}.{layer_names[match[2]]}.{match[3]}"]
