"""Adapters of other trainers, drawn with as diffusers does, and as merged weights do."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_ray.adapters.adapter import read_adapter
from dreambooth_ray.adapters.binding import bind_keys
from dreambooth_ray.adapters.layer_adapter import LayerAdapter, add_deltas_to_weight, find_layer
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.config.adapter_mix import AdapterMix, AdapterUse
from dreambooth_ray.models.components import load_components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.adapters import write_adapter
from tests.families.proven_families import PROVEN_MODELS
from tests.families.reference_pipelines import load_pipeline, pipeline_latents
from tests.families.test_engine_latents import differ, tolerance
from tests.unit.adapters.published_keys import (
    make_tensors,
    published_flux1,
    read_shapes,
    shrink_shapes,
    write_file,
)

PROMPT = "a photo of sks robot"
# FLUX.1's of every naming; blocks that the tiny model has not are left out.
PUBLISHED = [
    "flux_dora_onetrainer", "flux_lora_aitoolkit", "flux_lora_diffusers",
    "flux_lora_diffusers_base_model", "flux_lora_diffusers_no_proj_mlp", "flux_lora_kohya",
    "flux_lora_kohya_with_te1", "flux_lora_xlabs",
]  # fmt: skip
# What diffusers 0.42 reads. It takes OneTrainer's magnitudes, of inputs, for those of outputs,
# passes over BFL's names without kohya's prefix, and stops at peft's prefix, taken for fal's.
READ_BY_DIFFUSERS = [
    "flux_lora_diffusers", "flux_lora_diffusers_no_proj_mlp", "flux_lora_kohya",
    "flux_lora_kohya_with_te1", "flux_lora_xlabs",
]  # fmt: skip


@pytest.fixture(scope="module")
def flux1(tiny_directories: dict[str, Path]) -> Path:
    return tiny_directories["flux1-dev"]


@pytest.fixture(scope="module")
def engine(flux1: Path) -> Engine:
    return Engine(flux1)


def make_request(mix: AdapterMix, model: str, seed: int = 0) -> Request:
    proven = PROVEN_MODELS[model]
    return Request(
        PROMPT, seed, solver=proven.solver, num_inference_steps=2,
        guidance_scale=proven.guidance[-1], adapters=mix, width_px=64, height_px=64,
    )  # fmt: skip


def draw_merged(directory: Path, uses: list[tuple[Path, float]], request: Request) -> Tensor:
    """Latents of a model with all adapters in its weights."""
    parts, table = load_components(directory), LayerTable.of_directory(directory)
    layers: dict[tuple[str, str], list[tuple[LayerAdapter, float]]] = {}
    for path, weight in uses:
        for key, layer in read_adapter(path, table).layers.items():
            layers.setdefault(key, []).append((layer, weight))
    for (part, name), own in layers.items():
        module = find_layer(parts.networks[part], name)
        assert module is not None
        module.get_parameter("weight").data = add_deltas_to_weight(
            module.get_parameter("weight"), own
        )
    merged = dataclasses.replace(request, adapters=())
    return Engine(parts).sample([merged])[0].latents


def write_published(name: str, directory: Path, folder: Path, seed: int = 0) -> Path:
    shapes = shrink_shapes(
        bind_keys(read_shapes(name), published_flux1()), LayerTable.of_directory(directory)
    )
    return write_file(folder / f"{name}.safetensors", make_tensors(shapes, seed))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_drawn_with_as_its_merged_weights_are(
    flux1: Path, engine: Engine, tmp_path: Path, name: str
) -> None:
    path = write_published(name, flux1, tmp_path)
    engine.add_adapter(name, path)
    request = make_request((AdapterUse(name, 0.8),), "flux1-dev")
    plain, drawn = engine.sample([make_request((), "flux1-dev"), request])
    engine.remove_adapter(name)
    assert differ(plain.latents, drawn.latents) > 100 * tolerance(plain.latents)
    merged = draw_merged(flux1, [(path, 0.8)], request)
    assert differ(drawn.latents, merged) <= tolerance(merged)


@pytest.fixture
def pipeline(flux1: Path) -> Iterator[Any]:
    pipeline = load_pipeline(flux1)
    yield pipeline
    pipeline.unload_lora_weights()


@pytest.mark.parametrize("name", READ_BY_DIFFUSERS)
def test_diffusers_draws_the_same_with_a_published_file(
    flux1: Path, engine: Engine, tmp_path: Path, name: str, pipeline: Any
) -> None:
    tensors = make_tensors(
        shrink_shapes(
            bind_keys(read_shapes(name), published_flux1()), LayerTable.of_directory(flux1)
        )
    )
    # It knows the published size alone of layers that put queries, keys, values and more together.
    own = {k: t for k, t in tensors.items() if "lora_unet_single_blocks" not in k}
    path = write_file(tmp_path / f"{name}.safetensors", own)
    engine.add_adapter(name, path)
    (drawn,) = engine.sample([make_request((AdapterUse(name),), "flux1-dev")])
    engine.remove_adapter(name)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    reference = pipeline_latents(flux1, PROMPT, steps=2, guidance=4.0)[0]
    latents = PROVEN_MODELS["flux1-dev"].convert(None, drawn.latents)
    assert differ(latents, reference) <= tolerance(reference)


def kohya_shapes(file_layer: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {
        f"{file_layer}.lora_down.weight": (2, shape[1]),
        f"{file_layer}.lora_up.weight": (shape[0], 2),
        f"{file_layer}.alpha": (),
    }


def kohya_unet_file(directory: Path, folder: Path, seed: int) -> Path:
    """Of every linear layer in the UNet's attention and in the second text encoder's."""
    table = LayerTable.of_directory(directory)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in table.layers["unet"].items():
        if "attn" not in name:
            continue
        shapes |= kohya_shapes(f"lora_unet_{name.replace('.', '_')}", shape)
    for name, shape in table.layers["text_encoder_2"].items():
        if "self_attn" in name:
            shapes |= kohya_shapes(f"lora_te2_text_model_{name.replace('.', '_')}", shape)
    return write_file(folder / f"kohya-{seed}.safetensors", make_tensors(shapes, seed))


def test_diffusers_draws_the_same_with_a_file_of_stable_diffusion_xl(
    tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = tiny_directories["sdxl"]
    engine, path = Engine(directory), kohya_unet_file(directory, tmp_path, 0)
    engine.add_adapter("style", path)
    request = make_request((AdapterUse("style"),), "sdxl")
    (drawn,) = engine.sample([request])
    pipeline = load_pipeline(directory)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    try:
        reference = pipeline_latents(
            directory, PROMPT, steps=2, guidance=request.params.guidance_scale
        )[0]
    finally:
        pipeline.unload_lora_weights()
    assert differ(drawn.latents, reference) <= tolerance(reference)


def test_foreign_and_own_adapters_share_a_batch(
    tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = tiny_directories["flux1-dev"]
    paths = {
        "kohya": write_published("flux_lora_kohya_with_te1", directory, tmp_path, 1),
        "peft": write_published("flux_lora_diffusers", directory, tmp_path, 2),
        "dora": write_published("flux_dora_onetrainer", directory, tmp_path, 3),
        "own": write_adapter(directory, tmp_path / "own"),
    }
    engine = Engine(directory)
    for name, path in paths.items():
        engine.add_adapter(name, path)
    mixes: list[AdapterMix] = [
        (AdapterUse("kohya", 0.7),),
        (AdapterUse("own"),),
        (AdapterUse("kohya", 0.5), AdapterUse("peft", -0.6), AdapterUse("own", 0.9)),
        (),
        (AdapterUse("dora", 0.4), AdapterUse("peft")),
    ]
    requests = [make_request(mix, "flux1-dev", seed) for seed, mix in enumerate(mixes)]
    for request, output in zip(requests, engine.sample(requests), strict=True):
        uses = [(paths[use.name], use.weight) for use in request.adapters]
        merged = draw_merged(directory, uses, request)
        assert differ(output.latents, merged) <= tolerance(merged)


@pytest.mark.parametrize(
    "model", ["sdxl", "sd3", "z-image", "flux2-klein", "flux2-dev", "qwen-image", "krea2"]
)
def test_every_layer_can_have_an_adapter(
    tiny_directories: dict[str, Path], tmp_path: Path, model: str
) -> None:
    """Of all kinds of layers, text encoders among them, in diffusers' names."""
    directory = tiny_directories[model]
    table = LayerTable.of_directory(directory)
    shapes: dict[str, tuple[int, ...]] = {}
    for part, layers in table.layers.items():
        for name, shape in layers.items():
            if "embed_tokens" in name or "shared" in name or "embedding" in name.split(".")[0]:
                continue
            shapes[f"{part}.{name}.lora_A.weight"] = (1, *shape[1:])
            shapes[f"{part}.{name}.lora_B.weight"] = (shape[0], 1, *(1 for _ in shape[2:]))
    path = write_file(tmp_path / "all.safetensors", make_tensors(shapes))
    engine = Engine(directory)
    engine.add_adapter("all", path)
    request = make_request((AdapterUse("all", 0.2),), model)
    (drawn,) = engine.sample([request])
    merged = draw_merged(directory, [(path, 0.2)], request)
    assert differ(drawn.latents, merged) <= tolerance(merged)
    assert torch.isfinite(merged).all()
