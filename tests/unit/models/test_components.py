import hashlib
import json
import shutil
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.families.stable_diffusion import FAMILY
from dreambooth_ray.models.model_directory import (
    check_resolution,
    has_matching_hash,
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


# Of the toy model as it ships: bundles and sets of class images name it.
TOY_HASH = "0479181d784bd8681ccf2c47cc2e0267dd024b71cd9e49de4f96863fdb729848"


def test_the_toy_models_hash_is_what_stored_bundles_say() -> None:
    assert model_hash(model_directory("toyworld")) == TOY_HASH


def test_what_nothing_loads_is_not_part_of_the_hash(other_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(other_model, directory)
    before = model_hash(directory)
    for name in (
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin", "vae/model.onnx",
    ):  # fmt: skip
        (directory / name).write_bytes(b"other weights")
    assert model_hash(directory) == before
    (directory / "tokenizer" / "merges.txt").write_text("of another tokenizer")
    assert model_hash(directory) != before


def test_a_hash_over_all_files_is_still_the_models(other_model: Path, tmp_path: Path) -> None:
    """As bundles name it that were made before: over every file of each part."""
    directory = tmp_path / "m"
    shutil.copytree(other_model, directory)
    (directory / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"x")
    digest = hashlib.sha256()
    for path in sorted(
        p for part in FAMILY.parts for p in (directory / part).rglob("*") if p.is_file()
    ):
        digest.update(path.relative_to(directory).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    assert digest.hexdigest() != model_hash(directory)
    assert has_matching_hash(directory, digest.hexdigest())
    assert not has_matching_hash(directory, "0" * 64)


def test_shards_are_hashed_by_their_index(other_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(other_model, directory)
    unet = directory / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "a-00001-of-00001.safetensors")
    index = {"weight_map": {"conv_in.weight": "a-00001-of-00001.safetensors"}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    before = model_hash(directory)
    (unet / "a.fp16.safetensors").write_bytes(b"x")
    assert model_hash(directory) == before
    (unet / "a-00001-of-00001.safetensors").write_bytes(b"x")
    assert model_hash(directory) != before
