"""Names of Stable Diffusion's weights in its original single-file checkpoint.

diffusers' names go in, those of CompVis' latent-diffusion (1.x) and of open_clip (2.x) come
out. Sizes and numbers of blocks are read from the names, so models of any size convert.
Source: the modules' own numbering in openaimodel.UNetModel and model.Encoder/Decoder.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth_ray.models.single_file_names import (
    OPEN_CLIP_ENDS,
    OPEN_CLIP_LAYERS,
    UNET_PREFIX,
    VAE_ATTENTION,
    SingleFileEncoderNames,
    UNetBlocks,
    find_original_unet_name,
)

_Weight = TypeVar("_Weight")

_MID = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)")
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.*)")


def convert_unet(weights: Mapping[str, _Weight]) -> dict[str, _Weight]:
    """UNet2DConditionModel's weights, or what stands for them, under "model.diffusion_model."."""
    blocks = UNetBlocks.of_names(weights)
    return {
        f"{UNET_PREFIX}{find_original_unet_name(name, blocks)}": w for name, w in weights.items()
    }


def _count_blocks(names: Iterable[str], prefix: str) -> int:
    return len({n[len(prefix) + 1 :].split(".")[0] for n in names if n.startswith(f"{prefix}.")})


def mark_prediction(pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    """Names without contents by which ComfyUI and A1111 tell what an SDXL predicts."""
    scheduler_config = pipeline.scheduler.config
    is_xl = hasattr(pipeline, "text_encoder_2")
    if not is_xl or scheduler_config.get("prediction_type") != "v_prediction":
        return {}
    marker_tensor_names = [
        "v_pred",
        *(["ztsnr"] if scheduler_config.get("rescale_betas_zero_snr") else []),
    ]
    return {name: torch.zeros(0) for name in marker_tensor_names}


def convert_vae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AutoencoderKL's weights under "first_stage_model."."""
    num_up_blocks = _count_blocks(weights, "decoder.up_blocks")
    converted = {}
    for name, tensor in weights.items():
        ldm_name = _vae_name(name, num_up_blocks)
        # Its attention is made of 1x1 convolutions.
        is_conv_weight = ".attn_1." in ldm_name and tensor.ndim == 2
        converted[f"first_stage_model.{ldm_name}"] = (
            tensor[:, :, None, None] if is_conv_weight else tensor
        )
    return converted


def _vae_name(name: str, num_up_blocks: int) -> str:
    coder_name, _, inner_name = name.partition(".")
    if inner_name.startswith("conv_norm_out."):
        return f"{coder_name}.norm_out.{inner_name.rpartition('.')[2]}"
    if mid_match := _MID.fullmatch(inner_name):
        sublayer_kind, layer_index, suffix = mid_match.groups()
        if sublayer_kind == "resnets":
            return f"{coder_name}.mid.block_{int(layer_index) + 1}.{suffix}"
        layer, _, leaf = suffix.rpartition(".")
        return f"{coder_name}.mid.attn_{int(layer_index) + 1}.{VAE_ATTENTION[layer]}.{leaf}"
    block_match = _BLOCK.fullmatch(inner_name)
    if block_match is None:
        return name
    block_direction, block_number, sublayer_kind, layer_index, suffix = block_match.groups()
    # The decoder counts its blocks from the image's side.
    ldm_index = (
        int(block_number) if block_direction == "down" else num_up_blocks - 1 - int(block_number)
    )
    if sublayer_kind == "resnets":
        suffix = suffix.replace("conv_shortcut", "nin_shortcut")
        return f"{coder_name}.{block_direction}.{ldm_index}.block.{layer_index}.{suffix}"
    return f"{coder_name}.{block_direction}.{ldm_index}.{block_direction}sample.{suffix}"


def convert_text_encoder(
    weights: Mapping[str, Tensor], place: SingleFileEncoderNames
) -> dict[str, Tensor]:
    """CLIPTextModel's weights, or those of one with a projection, as single files have them."""
    convert_weights = convert_clip if place.layers == "clip" else convert_open_clip
    return {f"{place.prefix}{name}": weight for name, weight in convert_weights(weights).items()}


def convert_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under transformers' own names of the time."""
    return {f"text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}


def convert_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As open_clip's layers: queries, keys and values of a layer are one matrix there, (3 D, D).

    Its projection is the transpose of transformers'.
    """
    weights = {k.removeprefix("text_model."): v for k, v in weights.items()}
    converted = {}
    for name, tensor in weights.items():
        if name in OPEN_CLIP_ENDS:
            converted[OPEN_CLIP_ENDS[name]] = tensor
            continue
        if name == "text_projection.weight":
            converted["text_projection"] = tensor.T.contiguous()
            continue
        _, _, block_number, layer = name.split(".", 3)
        block_name, (module_name, _, leaf) = (
            f"transformer.resblocks.{block_number}",
            layer.rpartition("."),
        )
        if module_name == "self_attn.q_proj":
            qkv_weights = [weights[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            converted[f"{block_name}.attn.in_proj_{leaf}"] = torch.cat(qkv_weights)
        elif module_name not in ("self_attn.k_proj", "self_attn.v_proj"):
            converted[f"{block_name}.{OPEN_CLIP_LAYERS[module_name]}.{leaf}"] = tensor
    return converted
