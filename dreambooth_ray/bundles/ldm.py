"""Names of Stable Diffusion's weights in its original single-file checkpoint.

diffusers' names go in, those of CompVis' latent-diffusion (1.x) and of open_clip (2.x) come
out. Sizes and numbers of blocks are read from the names, so models of any size convert.
Source: the modules' own numbering in openaimodel.UNetModel and model.Encoder/Decoder.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from dreambooth_ray.models.single_file_names import (
    OPEN_CLIP_ENDS,
    OPEN_CLIP_LAYERS,
    RESNET_LAYERS,
    UNET_ENDS,
    VAE_ATTENTION,
)

_Weight = TypeVar("_Weight")

_BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)"
)
_MID = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)")


def convert_unet(weights: Mapping[str, _Weight]) -> dict[str, _Weight]:
    """UNet2DConditionModel's weights, or what stands for them, under "model.diffusion_model."."""
    return {f"model.diffusion_model.{_unet_name(k, weights)}": v for k, v in weights.items()}


def _unet_name(name: str, all_names: Iterable[str]) -> str:
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    if middle := _MID.fullmatch(name):
        kind, index, suffix = middle.groups()
        if kind == "attentions":
            return f"middle_block.{2 * int(index) + 1}.{suffix}"
        return f"middle_block.{2 * int(index)}.{_resnet_name(suffix)}"
    block = _BLOCK.fullmatch(name)
    if block is None:
        raise ValueError(f"{name} is no weight of a Stable Diffusion 1.x or 2.x UNet")
    side, number, kind, index, suffix = block.groups()
    i, j = int(number), int(index)
    if side == "down":
        # Each block's resnets, then its downsampler; block 0 is conv_in.
        first = 1 + i * (_count_blocks(all_names, "down_blocks.0.resnets") + 1)
        if kind == "downsamplers":
            block_index = first + _count_blocks(all_names, "down_blocks.0.resnets")
            return f"input_blocks.{block_index}.0.op.{suffix.removeprefix('conv.')}"
        block_name = f"input_blocks.{first + j}"
    else:
        per_block = _count_blocks(all_names, "up_blocks.0.resnets")
        if kind == "upsamplers":
            # Behind the last resnet, and behind its attention where there is one.
            layer_index = 2 if _count_blocks(all_names, f"up_blocks.{i}.attentions") else 1
            return f"output_blocks.{i * per_block + per_block - 1}.{layer_index}.{suffix}"
        block_name = f"output_blocks.{i * per_block + j}"
    return (
        f"{block_name}.1.{suffix}"
        if kind == "attentions"
        else f"{block_name}.0.{_resnet_name(suffix)}"
    )


def _count_blocks(names: Iterable[str], prefix: str) -> int:
    return len({n[len(prefix) + 1 :].split(".")[0] for n in names if n.startswith(f"{prefix}.")})


def _resnet_name(suffix: str) -> str:
    layer, _, leaf = suffix.partition(".")
    return f"{RESNET_LAYERS[layer]}.{leaf}"


def convert_vae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AutoencoderKL's weights under "first_stage_model."."""
    num_up = _count_blocks(weights, "decoder.up_blocks")
    converted = {}
    for name, tensor in weights.items():
        theirs = _vae_name(name, num_up)
        # Its attention is made of 1x1 convolutions.
        conv = ".attn_1." in theirs and tensor.ndim == 2
        converted[f"first_stage_model.{theirs}"] = tensor[:, :, None, None] if conv else tensor
    return converted


def _vae_name(name: str, num_up: int) -> str:
    side, _, inner = name.partition(".")
    if inner.startswith("conv_norm_out."):
        return f"{side}.norm_out.{inner.rpartition('.')[2]}"
    if middle := _MID.fullmatch(inner):
        kind, index, suffix = middle.groups()
        if kind == "resnets":
            return f"{side}.mid.block_{int(index) + 1}.{suffix}"
        layer, _, leaf = suffix.rpartition(".")
        return f"{side}.mid.attn_{int(index) + 1}.{VAE_ATTENTION[layer]}.{leaf}"
    block = _BLOCK.fullmatch(inner)
    if block is None:
        return name
    direction, number, kind, index, suffix = block.groups()
    # The decoder counts its blocks from the image's side.
    i = int(number) if direction == "down" else num_up - 1 - int(number)
    if kind == "resnets":
        suffix = suffix.replace("conv_shortcut", "nin_shortcut")
        return f"{side}.{direction}.{i}.block.{index}.{suffix}"
    return f"{side}.{direction}.{i}.{direction}sample.{suffix}"


def convert_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIPTextModel's weights as Stable Diffusion 1.x has them."""
    prefix = "cond_stage_model.transformer.text_model."
    return {f"{prefix}{k.removeprefix('text_model.')}": v for k, v in weights.items()}


def convert_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIPTextModel's weights as Stable Diffusion 2.x has them: open_clip's layers.

    Queries, keys and values of a layer are one matrix there, (3 D, D).
    """
    weights = {k.removeprefix("text_model."): v for k, v in weights.items()}
    converted = {}
    for name, tensor in weights.items():
        if name in OPEN_CLIP_ENDS:
            converted[OPEN_CLIP_ENDS[name]] = tensor
            continue
        _, _, number, layer = name.split(".", 3)
        block_name, (module, _, leaf) = f"transformer.resblocks.{number}", layer.rpartition(".")
        if module == "self_attn.q_proj":
            rows = [weights[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            converted[f"{block_name}.attn.in_proj_{leaf}"] = torch.cat(rows)
        elif module not in ("self_attn.k_proj", "self_attn.v_proj"):
            converted[f"{block_name}.{OPEN_CLIP_LAYERS[module]}.{leaf}"] = tensor
    return {f"cond_stage_model.model.{k}": v for k, v in converted.items()}
