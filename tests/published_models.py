"""Models with the configurations of published ones: every key, narrow layers, random weights.

The files under tests/published are as they were published; only widths, and the number of the text
encoder's layers, are made smaller here. Weights get the names that the published files have.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.families.tiny_tokenizers import write_clip_vocabulary

CONFIGS = Path(__file__).parent / "published"
SD15, SD15_INPAINTING = "stable-diffusion-1.5", "stable-diffusion-1.5-inpainting"
SD21, SDXL = "stable-diffusion-2.1", "stable-diffusion-xl-base-1.0"
# Whole vocabularies, where they are at hand: a folder with one of each model's name.
_AT_HAND = Path(__file__).parents[2] / "shared" / "model-configs"
_WHOLE_CONFIGS = Path(os.environ.get("MODEL_CONFIGS_DIR", _AT_HAND))
_WIDTH = 32  # of norm_num_groups


def build_published(
    name: str, folder: Path, variant: str | None = None, max_shard_size: str = "10GB"
) -> Path:
    """Write the model `name` to `folder`; variant: of the weight files, in float16 if given."""
    shutil.copytree(CONFIGS / name, folder)
    vocab_size = _write_vocabulary(name, folder / "tokenizer")
    torch.manual_seed(0)
    for part, shrink in _SHRINK.items():
        config = json.loads((folder / part / "config.json").read_text())
        config = shrink(config) | ({"vocab_size": vocab_size} if part == "text_encoder" else {})
        network = _BUILD[part](config)
        if variant:
            network = network.half()
        network.save_pretrained(folder / part, variant=variant, max_shard_size=max_shard_size)
        (folder / part / "config.json").write_text(json.dumps(config, indent=2))
        if max_shard_size == "10GB":  # diffusers reads old names from single files alone
            rename_weights(folder / part, _PUBLISHED_NAMES.get(part, lambda name: name))
    return folder


def _shrink_unet(config: dict[str, Any]) -> dict[str, Any]:
    widths = [_WIDTH, *[2 * _WIDTH] * (len(config["block_out_channels"]) - 1)]
    heads = config["attention_head_dim"]
    # Where it is a list it counts heads, of 32 channels here as there of 64.
    narrow_heads = [width // _WIDTH for width in widths] if isinstance(heads, list) else heads
    return config | {
        "block_out_channels": widths,
        "attention_head_dim": narrow_heads,
        "cross_attention_dim": _WIDTH,
    }


def _shrink_vae(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"block_out_channels": [_WIDTH] * len(config["block_out_channels"])}


def _shrink_text_encoder(config: dict[str, Any]) -> dict[str, Any]:
    return config | {
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }


_SHRINK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "unet": _shrink_unet,
    "vae": _shrink_vae,
    "text_encoder": _shrink_text_encoder,
}
_BUILD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unet": UNet2DConditionModel.from_config,
    "vae": AutoencoderKL.from_config,
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
}


def _published_vae_name(name: str) -> str:
    """The VAEs were written when their attention had other names."""
    theirs = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for ours, old in theirs.items():
        name = name.replace(f".attentions.0.{ours}.", f".attentions.0.{old}.")
    return name


def published_text_name(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


_PUBLISHED_NAMES: dict[str, Callable[[str], str]] = {
    "vae": _published_vae_name,
    "text_encoder": published_text_name,
}


def rename_weights(folder: Path, rename: Callable[[str], str]) -> None:
    for path in folder.glob("*.safetensors"):
        weights: dict[str, Tensor] = {rename(k): v for k, v in load_file(path).items()}
        if "text_model.embeddings.position_embedding.weight" in weights:
            # A buffer that the published files have and today's model has not.
            weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(weights, path, metadata={"format": "pt"})


def _write_vocabulary(name: str, folder: Path) -> int:
    """CLIP's vocabulary where it is at hand, else a small one in its form; returns its size."""
    if (_WHOLE_CONFIGS / name / "tokenizer" / "vocab.json").is_file():
        for file in ("vocab.json", "merges.txt"):
            shutil.copyfile(_WHOLE_CONFIGS / name / "tokenizer" / file, folder / file)
        return len(json.loads((folder / "vocab.json").read_text()))
    return write_clip_vocabulary(folder)


def build_full_width(name: str, part: str) -> nn.Module:
    """A network of the published size on the meta device: names and shapes without memory."""
    config = json.loads((CONFIGS / name / part / "config.json").read_text())
    with torch.device("meta"):
        network: nn.Module = _BUILD[part](config)
    return network
