"""What the inspection passes, loads; what does not load, it refuses, naming file and remedy."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components, load_pipeline
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_directory import model_directory
from tests.published_models import CONFIGS, SDXL


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture
def copied(sd15: Path, tmp_path: Path) -> Path:
    shutil.copytree(sd15, tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("name", ["sd15", "sd21", "sd15_inpainting", "tiny_model"])
def test_published_models_pass(request: pytest.FixtureRequest, name: str) -> None:
    directory: Path = request.getfixturevalue(name)
    assert model_directory(str(directory)) == directory


def test_a_relative_path_is_made_absolute(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    assert model_directory("m") == copied


def test_parts_of_stable_diffusion_xl_are_told_apart(copied: Path) -> None:
    index = copied / "model_index.json"
    shutil.copyfile(CONFIGS / SDXL / "model_index.json", index)
    with pytest.raises(ConfigError, match=r"model\.uri=.*no text_encoder_2/.*Stable Diffusion XL"):
        model_directory(str(copied))
    index.unlink()
    shutil.copyfile(CONFIGS / SDXL / "unet" / "config.json", copied / "unet" / "config.json")
    with pytest.raises(ConfigError, match="Stable Diffusion XL's UNet"):
        model_directory(str(copied))


def test_an_inpainting_model_is_sampled_and_not_trained(sd15_inpainting: Path) -> None:
    config = parse_config(
        "subject: {photos: p, class_noun: dog}", "x", [f"model.uri={sd15_inpainting}"]
    )
    with pytest.raises(ConfigError, match=r"model\.uri=.*inpainting model.*9 channels"):
        check_training_settings(config, model_directory(config.model.uri))


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no unet": (lambda m: shutil.rmtree(m / "unet"), "no unet/"),
    "no configuration": (lambda m: (m / "vae/config.json").unlink(), r"config\.json is missing"),
    "another pipeline": (
        lambda m: change(m / "model_index.json", _class_name="AllegroPipeline"), "AllegroPipeline"),
    "an upscaler": (lambda m: change(m / "unet/config.json", num_class_embeds=1000), "num_class"),
    "a depth model": (lambda m: change(m / "unet/config.json", in_channels=5), "takes 5 channels"),
    "another encoder": (
        lambda m: change(m / "text_encoder/config.json", hidden_size=64), "different models"),
    "a flow": (
        lambda m: change(m / "scheduler/scheduler_config.json",
                         _class_name="FlowMatchEulerDiscreteScheduler"), "FlowMatch"),
    "predicts the sample": (
        lambda m: change(m / "scheduler/scheduler_config.json", prediction_type="sample"),
        "prediction_type='sample'"),
    "no merges": (lambda m: (m / "tokenizer/merges.txt").unlink(), "merges"),
    "few merges": (
        lambda m: (m / "tokenizer/merges.txt").write_text("#version: 0.2\nr o\n"),
        r"merges\.txt and vocab\.json differ"),
    "many words": (
        lambda m: change(m / "text_encoder/config.json", vocab_size=10), "different models"),
    "no weights": (
        lambda m: (m / "text_encoder/model.safetensors").unlink(), "text_encoder holds no weights"),
    "cut off": (
        lambda m: _truncate(m / "vae/diffusion_pytorch_model.safetensors"), "no whole safetensors"),
    "wider": (
        lambda m: change(m / "unet/config.json", block_out_channels=[64, 64, 64, 64]),
        r"conv_in\.weight is \[64"),
    "other weights": (
        lambda m: shutil.copyfile(m / "vae/diffusion_pytorch_model.safetensors",
                                  m / "unet/diffusion_pytorch_model.safetensors"),
        "no such tensor"),
}  # fmt: skip


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_refused_by_name(copied: Path, name: str) -> None:
    damage, said = DAMAGES[name]
    damage(copied)
    with pytest.raises(ConfigError, match=said) as refused:
        model_directory(str(copied))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("removed", ["feature_extractor", "safety_checker", "model_index.json"])
def test_what_no_loader_needs_may_be_missing(copied: Path, tmp_path: Path, removed: str) -> None:
    path = copied / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    pipeline = load_pipeline(model_directory(str(copied)))
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    pipeline.save_pretrained(tmp_path / "saved")
    load_components(model_directory(str(tmp_path / "saved")))


def _loads_by_libraries(directory: Path) -> bool:
    """Whether the libraries' own loaders take every part, with all of its weights."""
    loaders: dict[str, Any] = {
        "unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel
    }  # fmt: skip
    try:
        for part, network_class in loaders.items():
            _, info = network_class.from_pretrained(
                directory, subfolder=part, use_safetensors=True, output_loading_info=True
            )
            if info["missing_keys"] or info["mismatched_keys"]:
                return False
        CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer")
        DDPMScheduler.from_pretrained(directory, subfolder="scheduler")
    except Exception:  # the oracle's answer, whatever it raises
        return False
    return True


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_is_seen_where_the_libraries_see_it(copied: Path, seed: int) -> None:
    """A file removed or cut off, or a key of a configuration changed, at random."""
    rng = random.Random(seed)
    files = sorted(p for p in copied.rglob("*") if p.is_file() and "safety" not in str(p))
    path = rng.choice(files)
    if seed % 3 == 0:
        path.unlink()
    elif seed % 3 == 1:
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    else:
        path = rng.choice([p for p in files if p.name == "config.json"])
        key, value = rng.choice(
            [(k, v) for k, v in json.loads(path.read_text()).items() if type(v) is int]
        )
        change(path, **{key: value * 2 + 1})
    loads, start_s = _loads_by_libraries(copied), time.monotonic()
    try:
        load_components(model_directory(str(copied)))
    except ConfigError as error:
        assert str(copied) in str(error)
        assert "\n" not in str(error)
        # Stricter than the libraries is allowed where sampling or training would fail.
        return
    assert loads, f"{path} passed in {time.monotonic() - start_s:.1f} s"
