import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.families.tiny_models import TINY_MODELS, build_network, build_tiny

# Sums of all weights of the denoiser. What was recorded holds for these weights.
DENOISER_SUMS = {
    "sd15": 2039.815,
    "sdxl": 1991.141,
    "sd3": 23.468,
    "sd3-without-t5": 22.832,
    "sd35": 183.055,
    "flux1-dev": 250.439,
    "flux1-schnell": 243.993,
    "z-image": 550.288,
    "z-image-turbo": 550.288,
    "chroma": 174.996,
    "qwen-image": 103.191,
    "krea2": 377.056,
    "krea2-turbo": 377.056,
    "sana": 1.931,
    "sana-flow-match": 1.931,
    "sana-1.5-2k": 278.407,
    "flux2-klein": 155.985,
    "flux2-klein-distilled": 155.985,
    "flux2-dev": 133.945,
}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_tiny_model_keeps_every_published_key(name: str, tmp_path: Path) -> None:
    model = TINY_MODELS[name]
    build_tiny(name, tmp_path / name)
    for path in model.configs.rglob("*.json"):
        file = path.relative_to(model.configs)
        if "safety_checker" in file.parts:
            continue
        published = json.loads(path.read_text())
        ours = json.loads((tmp_path / name / file).read_text())
        assert list(published) == [key for key in ours if key in published], file
    index = json.loads((tmp_path / name / "model_index.json").read_text())
    for part, value in index.items():
        if isinstance(value, list) and isinstance(value[0], str):
            assert (tmp_path / name / part).is_dir()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_weights_are_the_recorded_ones_and_fit(name: str, tmp_path: Path) -> None:
    folder = build_tiny(name, tmp_path / name)
    num_params = 0
    for part in TINY_MODELS[name].shrink:
        (path,) = (folder / part).glob("*.safetensors")
        weights = load_file(path)
        num_params += sum(tensor.numel() for tensor in weights.values())
        network = build_network(json.loads((folder / part / "config.json").read_text()))
        assert sum(p.numel() for p in network.parameters()) <= num_params
        assert all(tensor.isfinite().all() for tensor in weights.values())
        if part in ("unet", "transformer"):
            total = sum(float(tensor.double().sum()) for tensor in weights.values())
            assert total == pytest.approx(DENOISER_SUMS[name], abs=1e-2)
    assert num_params < 700_000


def test_padding_tokens_of_z_image_are_filled(tmp_path: Path) -> None:
    folder = build_tiny("z-image", tmp_path / "model")
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert weights["x_pad_token"].std() > 0
    assert weights["cap_pad_token"].std() > 0


def test_latents_of_flux2_have_statistics(tmp_path: Path) -> None:
    folder = build_tiny("flux2-klein", tmp_path / "model")
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert weights["bn.running_mean"].std() > 0
    assert weights["bn.running_var"].min() > 0
    assert weights["bn.running_var"].std() > 0


def test_variants_and_shards(tmp_path: Path) -> None:
    half = build_tiny("z-image", tmp_path / "half", variant="fp16")
    weights = load_file(half / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
    assert weights["x_pad_token"].dtype == torch.float16
    shards = build_tiny("z-image", tmp_path / "shards", max_shard_size="200KB")
    index = json.loads(
        (shards / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert len(set(index["weight_map"].values())) > 1
