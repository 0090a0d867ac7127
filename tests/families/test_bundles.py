"""d. Bundles and files for other programs are read by diffusers as they were learnt."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.models.components import load_pipeline
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import model_hash
from tests.families.adapters import write_adapter
from tests.families.proven_families import PROVEN_MODELS, TRAINED_MODELS
from tests.families.reference_pipelines import initial_latents, read_pipeline

PROMPT = "a photo of sks robot"


@pytest.fixture(params=TRAINED_MODELS, scope="module")
def base(request: pytest.FixtureRequest, tiny_directories: dict[str, Path]) -> Path:
    return tiny_directories[request.param]


@pytest.fixture(scope="module")
def bundle(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a LoRA run: adapters of every part that can be trained, with B not zero."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_adapter(base, folder / "adapter")
    about = {"kind": "adapter", "base_model": str(base), "base_hash": model_hash(base)}
    (folder / "manifest.json").write_text(json.dumps({"about": about, "files": []}))
    return folder


@pytest.fixture(scope="module")
def latents(bundle: Path) -> Tensor:
    """Of the bundle, by diffusers' pipeline of its parts."""
    return sample(load_pipeline(bundle))


def sample(pipeline: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_latents(pipeline, 0, (64, 64))
    images: Tensor = pipeline(
        prompt=PROMPT, num_inference_steps=3, width=64, height=64, latents=noise,
        guidance_scale=3.0, output_type="latent",
    ).images  # fmt: skip
    return images


def differ(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / max(1.0, float(other.abs().max())))


def test_adapters_change_what_is_sampled(base: Path, latents: Tensor) -> None:
    assert differ(sample(load_pipeline(base)), latents) > 1e-2


def test_a_directory_loads_and_samples_the_same(
    bundle: Path, latents: Tensor, tmp_path: Path
) -> None:
    out = export_run(str(bundle), "diffusers", tmp_path / "model")
    read = read_pipeline(out)
    assert type(read).__name__ == find_family(out).pipeline_classes[0]
    assert differ(sample(read), latents) <= 1e-4


@pytest.mark.parametrize("kind", ["lora", "kohya"])
def test_a_file_of_adapters_is_read_layer_by_layer(
    base: Path, bundle: Path, latents: Tensor, tmp_path: Path, kind: str
) -> None:
    """The export itself compares each layer with what was learnt."""
    if kind not in set(find_family(base).export_formats) - PROVEN_MODELS[base.name].unread_formats:
        pytest.skip(f"no {kind}")
    out = export_run(str(bundle), kind, tmp_path / "subject.safetensors")
    pipeline = load_pipeline(base)
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    assert differ(sample(pipeline), latents) <= 1e-4


def test_a_single_file_has_the_adapters_in_its_weights(
    base: Path, bundle: Path, latents: Tensor, tmp_path: Path
) -> None:
    """The export itself compares each weight with what diffusers reads."""
    if "single-file" not in find_family(base).export_formats:
        pytest.skip("no single file")
    out = export_run(str(bundle), "single-file", tmp_path / "model.safetensors")
    directory = export_run(str(bundle), "diffusers", tmp_path / "model")
    pipeline = load_pipeline(directory)
    options = dict.fromkeys({"safety_checker", "feature_extractor"} & pipeline.components.keys())
    read = type(pipeline).from_single_file(
        str(out), config=str(directory), local_files_only=True, torch_dtype=torch.float32, **options
    )
    read.scheduler = pipeline.scheduler
    assert differ(sample(read), latents) <= 1e-4
