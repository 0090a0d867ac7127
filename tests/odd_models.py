"""Model directories as they are found: each loads, and each is unlike what most programs expect."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from tests.families.tiny_models import change_json
from tests.published_models import SD15, SD21, build_published

GARBAGE = b"\x80\x04not what it says"


def build_half_alone(folder: Path) -> Path:
    """Files of float16 alone, under that variant's names, and no image processor."""
    build_published(SD15, folder, "fp16")
    shutil.rmtree(folder / "feature_extractor")
    return folder


def build_sharded(folder: Path) -> Path:
    """Each network in several files with an index."""
    build_published(SD21, folder, max_shard_size="300KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    return folder


def build_without_index(folder: Path) -> Path:
    """No model_index.json."""
    (build_published(SD15, folder) / "model_index.json").unlink()
    return folder


def build_with_absent_checker(folder: Path) -> Path:
    """An index that names a safety checker, and insists on it, without its folder."""
    build_published(SD15, folder)
    shutil.rmtree(folder / "safety_checker")
    change_json(folder / "model_index.json", {"requires_safety_checker": True})
    return folder


def build_with_pickles(folder: Path) -> Path:
    """Pickles of the same weights beside the files that are read."""
    build_published(SD15, folder)
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"):
        (folder / name).write_bytes(GARBAGE)
    return folder


def build_snapshot(folder: Path) -> Path:
    """As the hub's own cache lays it out: links to files that are named by their hash."""
    whole, snapshot = build_published(SD15, folder / "whole"), folder / "snapshots" / "0123abcd"
    (folder / "blobs").mkdir()
    for number, path in enumerate(sorted(p for p in whole.rglob("*") if p.is_file())):
        blob, link = folder / "blobs" / f"{number:040x}", snapshot / path.relative_to(whole)
        path.rename(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(whole)
    return snapshot


def build_odd_name(folder: Path) -> Path:
    """A folder whose name has a blank, a hash sign and letters beyond ASCII."""
    return build_published(SD15, folder / "model #2, größer (final)")


def build_bfloat16(folder: Path) -> Path:
    """Weights of bfloat16 under the usual names."""
    build_published(SD15, folder)
    for path in folder.rglob("*.safetensors"):
        weights = {
            name: weight.bfloat16() if weight.is_floating_point() else weight
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})
    return folder


def build_other_scheduler(folder: Path) -> Path:
    """A scheduler of another kind, with keys of its own."""
    build_published(SD15, folder)
    settings = {
        "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++",
        "solver_order": 2, "use_karras_sigmas": True, "lower_order_final": True,
    }  # fmt: skip
    change_json(folder / "scheduler" / "scheduler_config.json", settings)
    index = {"scheduler": ["diffusers", "DPMSolverMultistepScheduler"]}
    change_json(folder / "model_index.json", index)
    return folder


def build_repository(folder: Path) -> Path:
    """All that a repository holds: other variants, other formats, papers."""
    build_published(SD15, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for name in ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model.non_ema"):
        shutil.copyfile(weights, weights.with_name(f"{name}.safetensors"))
    for name in ("unet/model.onnx", "unet/diffusion_flax_model.msgpack", "README.md",
                 ".gitattributes", "v1-5.ckpt", "vae_decoder/openvino_model.bin"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(GARBAGE)
    return folder


def build_unbounded_tokenizer(folder: Path) -> Path:
    """A tokenizer of one file that knows no longest prompt."""
    build_published(SD15, folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    shutil.rmtree(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    path = folder / "tokenizer" / "tokenizer_config.json"
    content = json.loads(path.read_text()) | {"model_max_length": 10**30}
    path.write_text(json.dumps(content))
    assert {p.name for p in path.parent.iterdir()} == {"tokenizer.json", path.name}
    return folder


def build_spare_embeddings(folder: Path) -> Path:
    """More token embeddings than words, and a VAE without its two small convolutions."""
    build_published(SD15, folder)
    encoder: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    encoder.resize_token_embeddings(encoder.config.vocab_size + 59)
    encoder.save_pretrained(folder / "text_encoder")
    torch.manual_seed(0)
    config = {**AutoencoderKL.load_config(folder, subfolder="vae"), "use_quant_conv": False,
              "use_post_quant_conv": False, "scaling_factor": 0.13}  # fmt: skip
    AutoencoderKL.from_config(config).save_pretrained(folder / "vae")
    return folder


ODD_MODELS: dict[str, Callable[[Path], Path]] = {
    "half-alone": build_half_alone,
    "sharded": build_sharded,
    "without-index": build_without_index,
    "absent-checker": build_with_absent_checker,
    "pickles-beside": build_with_pickles,
    "snapshot": build_snapshot,
    "odd-name": build_odd_name,
    "bfloat16": build_bfloat16,
    "other-scheduler": build_other_scheduler,
    "repository": build_repository,
    "unbounded-tokenizer": build_unbounded_tokenizer,
    "spare-embeddings": build_spare_embeddings,
}
