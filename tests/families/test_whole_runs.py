"""Whole runs of what families train beside a LoRA of a directory, read by diffusers at the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.models import tokens
from dreambooth_ray.models.components import load_components, load_pipeline
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.tiny_models import build_tiny
from tests.integration.conftest import dreambooth, train

pytestmark = pytest.mark.fault
SETTINGS = [
    "train.steps=3", "train.resolution=64", "train.batch_size=2", "train.lr=1e-2",
    "prior.count=4", "prior.num_inference_steps=2", "checkpoint.every=2", "sample.every=0",
]  # fmt: skip
SEED, STEPS, GUIDANCE = 3, 3, 3.0
METHODS = {
    "full": ["train.method=full"],
    "full with both text encoders": ["train.method=full", "train.text_encoder=true"],
    "kv": ["train.method=kv"],
    "learned": ["train.method=lora", "train.unet=false", "identifier.kind=learned"],
}


def sample_pipeline(pipeline: Any, prompt: str) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    images: Tensor = pipeline(
        prompt=prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent",
        generator=torch.Generator().manual_seed(SEED), width=64, height=64,
    ).images  # fmt: skip
    return images[0]


def sample_engine(directory: Path, prompt: str) -> Tensor:
    request = Request(
        prompt, SEED, solver="euler", num_inference_steps=STEPS, guidance_scale=GUIDANCE
    )
    return Engine(directory).sample([request])[0].latents


def differ(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("method", METHODS)
def test_stable_diffusion_xl_is_trained_and_its_bundle_is_diffusers_own(
    photos: Path, tmp_path: Path, method: str
) -> None:
    base = build_tiny("sdxl", tmp_path / "sdxl")
    run = train(tmp_path, photos, f"model.uri={base}", *METHODS[method], *SETTINGS)
    assert [row["step"] for row in run.metrics] == [1, 2, 3]
    about = json.loads((run.folder / "bundle" / "manifest.json").read_text())["about"]
    bundle = model_directory(str(run.folder))
    ours, plain = (sample_engine(folder, about["prompt"]) for folder in (bundle, base))
    assert differ(ours, plain) > 1e-3
    if method == "learned":
        words = tokens.read_learned_words(bundle / "adapter")
        assert {name: list(rows) for name, rows in words.items()} == {
            "text_encoder": ["<sks>"], "text_encoder_2": ["<sks>"]
        }  # fmt: skip
        read = load_pipeline(base)
        for name in words:
            read.load_textual_inversion(
                str(tokens.words_path(bundle / "adapter", name)),
                text_encoder=getattr(read, name),
                tokenizer=getattr(read, name.replace("text_encoder", "tokenizer")),
            )
    else:
        read = DiffusionPipeline.from_pretrained(bundle, dtype=torch.float32, local_files_only=True)
    assert differ(sample_pipeline(read, about["prompt"]), ours) <= 1e-4
    if method == "kv":
        trained = load_file(bundle / "unet" / "diffusion_pytorch_model.safetensors")
        given = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
        changed = {name for name, weight in trained.items() if not torch.equal(weight, given[name])}
        assert changed
        assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in changed)


def test_a_single_file_of_stable_diffusion_xl_is_trained_as_its_directory(
    photos: Path, tmp_path: Path
) -> None:
    """From the file to images and a LoRA for other programs.

    Its weights are the directory's bit by bit. They lie elsewhere in memory, so sums are rounded
    otherwise: the curve is the same to that.
    """
    base = build_tiny("sdxl", tmp_path / "sdxl")
    file = export_run(str(base), "single-file", tmp_path / "xl.safetensors")
    networks = [load_components(model_directory(str(uri))).networks for uri in (base, file)]
    for name, network in networks[0].items():
        weights = networks[1][name].state_dict()
        assert all(torch.equal(weights[key], w) for key, w in network.state_dict().items()), name
    settings = [*SETTINGS, "train.method=lora", "train.lora.rank=2", "train.text_encoder=true"]
    settings.append("train.lr=1e-3")
    storage = f"storage.uri={tmp_path / 'out'}"
    runs = [train(tmp_path, photos, f"model.uri={uri}", storage, *settings) for uri in (base, file)]
    by_directory, by_file = runs
    for ours, theirs in zip(by_file.curve, by_directory.curve, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    options = ["--num-images", "1", "--num-inference-steps", "2", "--out", str(tmp_path / "images")]
    generated = dreambooth("generate", str(by_file.folder), *options, cwd=tmp_path)
    assert generated.returncode == 0, generated.stderr
    out = export_run(str(by_file.folder), "lora", tmp_path / "subject.safetensors")
    pipeline = load_pipeline(base)
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    about = json.loads((by_file.folder / "bundle" / "manifest.json").read_text())["about"]
    bundle = model_directory(str(by_file.folder))
    ours = sample_engine(bundle, about["prompt"])
    assert differ(sample_pipeline(pipeline, about["prompt"]), ours) <= 1e-4
