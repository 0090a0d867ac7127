"""Single files, URLs and parts of several sources, as `model.uri` names them."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_ray.bundles import ldm
from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.config.base_model import ModelConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import model_location, weight_cache
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory, model_hash, model_outline
from dreambooth_ray.models.model_source import ModelSource, make_absolute, parse_source
from dreambooth_ray.models.weight_cache import fetched_models_folder
from tests.hub_server import HubServer, read_folder

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_cache, "_held_locks", {})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def other_vae(toy_model: Path, tmp_path: Path) -> Path:
    """The toy's VAE with other weights, a directory of its own."""
    folder = tmp_path / "other-vae"
    shutil.copytree(toy_model / "vae", folder)
    weights = {name: weight * 2 for name, weight in load_file(folder / VAE).items()}
    save_file(weights, folder / VAE)
    return folder


def test_a_source_is_one_text_that_its_keys_make_and_it_is_read_from() -> None:
    source = ModelSource("someone/tiny@v1", "/a/vae dir", "", "epsilon")
    assert parse_source(str(source)) == source
    config = ModelConfig(uri="someone/tiny@v1", vae="/a/vae dir", prediction_type="epsilon")
    assert config.source == str(source)
    assert parse_source("/models/what?") == ModelSource("/models/what?")
    absolute = parse_source(make_absolute("a/b/c?vae=x/y/z"))
    assert absolute == ModelSource(str(Path("a/b/c").absolute()), str(Path("x/y/z").absolute()))


def test_a_single_file_is_converted_once(toy_model: Path, tmp_path: Path) -> None:
    file = export_run(str(toy_model), "single-file", tmp_path / "one.safetensors")
    outline = model_outline("one.safetensors")
    assert not fetched_models_folder().exists(), "a look converts nothing"
    assert (outline / UNET).stat().st_size > (outline / UNET).stat().st_blocks * 512
    directory = model_directory("one.safetensors")
    assert torch.equal(
        load_components(directory).unet.conv_in.weight,
        load_components(toy_model).unet.conv_in.weight,
    )
    shutil.copy(file, tmp_path / "copy.safetensors")
    assert model_directory(str(tmp_path / "copy.safetensors")) == directory
    (tmp_path / "one.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"model\.uri='one\.ckpt'.*is a pickle"):
        model_outline("one.ckpt")
    with pytest.raises(
        ConfigError, match=r"'two\.safetensors' is neither 'toyworld' nor a directory"
    ):
        model_outline("two.safetensors")
    with pytest.raises(ConfigError, match="prediction_type=epsilon is for single files"):
        model_outline("toyworld?prediction_type=epsilon")


def test_a_model_at_a_url_is_fetched_once_and_anew_when_it_changes(toy_model: Path) -> None:
    store = fsspec.filesystem("memory")
    for name, content in read_folder(toy_model).items():
        store.pipe_file(f"/bucket/sd/{name}", content)
    store.pipe_file("/bucket/sd/unet/diffusion_pytorch_model.bin", b"x")
    outline = model_outline("memory://bucket/sd")
    assert not fetched_models_folder().exists()
    directory = model_directory("memory://bucket/sd/")
    assert read_folder(directory) == read_folder(toy_model)
    assert read_folder(outline).keys() == read_folder(toy_model).keys()
    assert model_directory("memory://bucket/sd") == directory
    scheduler = json.loads((toy_model / "scheduler/scheduler_config.json").read_text())
    changed = json.dumps(scheduler | {"beta_end": 0.02}).encode()
    store.pipe_file("/bucket/sd/scheduler/scheduler_config.json", changed)
    assert model_hash(model_directory("memory://bucket/sd")) != model_hash(directory)
    with pytest.raises(ConfigError, match=r"model\.uri='memory://bucket/none'.*has no files"):
        model_outline("memory://bucket/none")


def test_a_single_file_at_a_url(toy_model: Path, tmp_path: Path) -> None:
    file = export_run(str(toy_model), "single-file", tmp_path / "one.safetensors")
    fsspec.filesystem("memory").pipe_file("/files/one.safetensors", file.read_bytes())
    model_outline("memory://files/one.safetensors")
    assert not fetched_models_folder().exists()
    directory = model_directory("memory://files/one.safetensors")
    assert model_hash(directory) == model_hash(model_directory("one.safetensors"))
    assert not list(directory.glob("*.safetensors"))


def test_another_vae_takes_the_place_of_the_models_own(
    toy_model: Path, other_vae: Path, hub: HubServer, tmp_path: Path
) -> None:
    original = load_components(toy_model)
    parts = load_components(model_directory("toyworld?vae=other-vae"))
    name = "decoder.conv_in.weight"
    expected = original.vae.state_dict()[name] * 2
    assert torch.equal(parts.vae.state_dict()[name], expected)
    assert torch.equal(parts.unet.conv_in.weight, original.unet.conv_in.weight)
    digest = model_hash(model_directory("toyworld?vae=other-vae"))
    assert digest != model_hash(toy_model)

    hub.add("someone/vae", read_folder(other_vae) | {"diffusion_pytorch_model.bin": b"x"})
    assert model_hash(model_directory("toyworld?vae=someone/vae")) == digest
    of_model = {f"vae/{name}": content for name, content in read_folder(other_vae).items()}
    hub.add("someone/model", read_folder(toy_model) | of_model)
    assert model_hash(model_directory("toyworld?vae=someone/model")) == digest
    assert hub.bytes_sent[UNET] == 0, "a model's VAE alone is fetched"

    weights = ldm.convert_vae(load_file(other_vae / VAE))
    alone = {name.removeprefix("first_stage_model."): w for name, w in weights.items()}
    save_file(alone, "v.safetensors")
    assert model_outline("toyworld?vae=v.safetensors")
    single = load_components(model_directory("toyworld?vae=v.safetensors"))
    assert torch.equal(single.vae.state_dict()[name], expected)


def test_parts_that_do_not_fit_are_refused_before_anything_is_fetched(
    toy_model: Path, other_model: Path, hub: HubServer
) -> None:
    hub.add("someone/other", read_folder(other_model))
    with pytest.raises(ConfigError, match=r"channels, and vae/ gives"):
        model_directory("toyworld?vae=someone/other")
    with pytest.raises(ConfigError, match=r"text embeddings of width .* text_encoder/ gives 48"):
        model_directory("toyworld?text_encoder=someone/other")
    assert not fetched_models_folder().exists() or not list(fetched_models_folder().glob("*/*"))
    with pytest.raises(ConfigError, match=r"model\.vae='someone/none': there is no model"):
        model_directory("toyworld?vae=someone/none")
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=r"model\.vae='empty' has neither vae/config\.json"):
        model_directory("toyworld?vae=empty")
    with pytest.raises(ConfigError, match=r"model\.uri='empty' has no parts of its own"):
        model_directory("empty?vae=toyworld")


def test_of_two_that_make_a_folder_at_once_the_first_ones_stays(tmp_path: Path) -> None:
    folder = tmp_path / "outlines" / "key"

    def write_as_the_later(partial: Path) -> None:
        (partial / "config.json").write_text("later")
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("first")

    model_location._make_folder_atomically(folder, write_as_the_later)
    assert (folder / "config.json").read_text() == "first"
    assert [path.name for path in folder.parent.iterdir()] == ["key"]
