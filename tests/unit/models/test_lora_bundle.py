"""An adapter bundle stands for its base model with the adapters fused in."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import lora
from dreambooth_ray.models.components import load_components, load_pipeline
from dreambooth_ray.models.model_directory import (
    base_directory,
    check_resolution,
    model_directory,
    model_hash,
)
from tests.unit.models.test_lora import trained_parts


def make_bundle(folder: Path, model: Path, *overrides: str) -> Path:
    parts = trained_parts(model, *overrides)
    lora.save_adapters(parts.unet, folder / "adapter" / "unet")
    lora.save_adapters(parts.text_encoder, folder / "adapter" / "text_encoder")
    about = {"kind": "adapter", "base_model": str(model), "base_hash": model_hash(model)}
    (folder / "manifest.json").write_text(json.dumps({"about": about, "files": []}))
    return folder


def test_components_and_pipeline_have_the_adapters_in_them(
    tiny_model: Path, tmp_path: Path
) -> None:
    bundle = model_directory(str(make_bundle(tmp_path / "b", tiny_model)))
    parts, pipeline = load_components(bundle), load_pipeline(bundle)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    plain = load_components(tiny_model).unet.get_parameter(name)
    assert not torch.equal(parts.unet.get_parameter(name), plain)
    for part in ("unet", "text_encoder"):
        component_weights, pipeline_weights = (
            getattr(x, part).state_dict() for x in (parts, pipeline)
        )
        assert component_weights.keys() == pipeline_weights.keys()
        assert all(
            torch.equal(component_weights[k], pipeline_weights[k]) for k in component_weights
        )
    assert base_directory(bundle) == tiny_model
    check_resolution(bundle, 64)
    assert model_hash(bundle) != model_hash(tiny_model)


def test_a_base_that_changed_or_went_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    bundle = make_bundle(tmp_path / "b", tmp_path / "base")
    config = tmp_path / "base" / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ConfigError, match="has changed since"):
        model_directory(str(bundle))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"adapts the model .*can't be used"):
        model_directory(str(bundle))


def test_a_bundle_that_names_no_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", tiny_model)
    (bundle / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"no manifest\.json that names its base"):
        model_directory(str(bundle))


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    weights = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    with pytest.raises(ConfigError, match="no weights"):
        model_directory(str(tmp_path / "m"))
    torch.save({"x": torch.ones(1)}, weights.with_suffix(".bin"))
    with pytest.raises(ConfigError, match="a pickle, which can run code"):
        model_directory(str(tmp_path / "m"))
