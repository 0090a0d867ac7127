import shutil
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.source import (
    check_resolution,
    flow_directory,
    model_directory,
    model_hash,
)


def test_sizes_are_the_models_own(other_model: Path) -> None:
    parts = load_components(other_model)
    assert parts.latent_factor == 8
    assert parts.tokenizer.model_max_length == 77
    assert parts.schedule.config.prediction_type == "v_prediction"
    assert not any(p.requires_grad for p in parts.vae.parameters())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(other_model: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(other_model, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / part)
    with pytest.raises(ConfigError, match=rf"model\.uri=.*has no {part}/"):
        model_directory(str(tmp_path / "m"))


def test_no_directory_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither 'toyworld' nor a directory"):
        model_directory(str(tmp_path / "nowhere"))


def test_the_flow_toy_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"base_model='toyworld-flow' is a Z-Image.*toyworld score"
    ):
        model_directory("toyworld-flow", key="base_model")


def test_a_flow_directory_is_recognised_by_its_pipeline(other_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    assert flow_directory(str(tmp_path)) == tmp_path
    assert flow_directory(str(other_model)) is None
    assert flow_directory(str(tmp_path / "nowhere")) is None
    with pytest.raises(ConfigError, match="says ZImagePipeline"):
        model_directory(str(tmp_path))


def test_a_run_without_a_bundle_says_how_to_finish(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="dreambooth resume"):
        model_directory(str(tmp_path))


def test_resolutions_must_fit_the_model(other_model: Path) -> None:
    check_resolution(other_model, 128)
    with pytest.raises(ConfigError, match=r"not a multiple of 64.*try 128"):
        check_resolution(other_model, 100)


def test_the_hash_sees_every_weight(other_model: Path, tmp_path: Path) -> None:
    shutil.copytree(other_model, tmp_path / "m")
    before = model_hash(tmp_path / "m")
    assert before == model_hash(other_model)
    weights = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_hash(tmp_path / "m") != before
