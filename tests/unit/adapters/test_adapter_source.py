"""What names an adapter: where it lies, its weight, and what is refused, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreambooth_ray import api
from dreambooth_ray.adapters.adapter_source import WeightedAdapterSource, locate_adapters
from dreambooth_ray.cli import main
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.storage import manifest
from tests.unit.adapters.published_keys import write_file

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def style(tmp_path: Path) -> Path:
    return write_file(
        tmp_path / "style.safetensors",
        {f"{LAYER}.lora_down.weight": torch.ones(2, 128) / 8,
         f"{LAYER}.lora_up.weight": torch.ones(128, 2) / 8},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "uri", "weight"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("out/runs/dog:-1", "out/runs/dog", -1.0),
        ("s3://bucket/style.safetensors", "s3://bucket/style.safetensors", 1.0),
        ("s3://bucket/style.safetensors:1.5e-1", "s3://bucket/style.safetensors", 0.15),
        ("https://host:8000/style.safetensors", "https://host:8000/style.safetensors", 1.0),
    ],
)
def test_a_weight_stands_behind_the_last_colon(text: str, uri: str, weight: float) -> None:
    assert WeightedAdapterSource.parse(text) == WeightedAdapterSource(uri, weight)


@given(st.floats(-10, 10, allow_nan=False))
def test_every_weight_is_read_back(weight: float) -> None:
    assert WeightedAdapterSource.parse(f"style.safetensors:{weight}").weight == weight


def test_a_path_that_is_there_is_taken_whole(tmp_path: Path, style: Path) -> None:
    odd = style.rename(tmp_path / "style:2")
    assert WeightedAdapterSource.parse(str(odd)) == WeightedAdapterSource(str(odd))


def test_a_bundle_is_for_its_own_base(
    toy_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "dog" / "bundle"
    (bundle.parent).mkdir()
    (bundle.parent / "config.yaml").touch()
    bundle.mkdir()
    (bundle / "adapter").symlink_to(adapters["one"])
    about: dict[str, object] = {"base_model": "toyworld", "base_hash": model_hash(toy_model)}
    manifest.write_local_manifest(bundle, about)
    (local,) = locate_adapters([f"{bundle.parent}:0.5"], toy_model, "--lora")
    assert (local.path, local.weight) == (bundle / "adapter", 0.5)
    assert local.name.startswith("dog@")
    manifest.write_local_manifest(bundle, about | {"base_hash": "0" * 64})
    with pytest.raises(ConfigError, match=r"--lora=.*dog' was trained on another base model"):
        locate_adapters([str(bundle.parent)], toy_model, "--lora")


def test_an_adapter_at_a_url_is_fetched(toy_model: Path, style: Path) -> None:
    (local,) = locate_adapters([f"file://{style}:2"], toy_model, "--lora")
    assert local.path != style
    assert local.path.read_bytes() == style.read_bytes()
    with pytest.raises(ConfigError, match=r"--lora='file://.*is not there"):
        locate_adapters([f"file://{style.parent}/other.safetensors"], toy_model, "--lora")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.safetensors", "is not there"),
        ("owner/style", r"is not there \(models of the hub are not read as adapters\)"),
        ("style.pt", "pickles can run code"),
        ("empty", "has no adapter_model.safetensors"),
        ("toyworld-like", "is a whole model, no adapter"),
    ],
)
def test_what_is_no_adapter_is_refused(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "style.pt").write_bytes(b"\x80\x04")
    (tmp_path / "toyworld-like" / "vae").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"--lora='{name}'.*{message}"):
        locate_adapters([name], toy_model, "--lora")


def test_a_file_that_does_not_fit_ends_the_verb_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_file(tmp_path / "x.safetensors", {"lora_unet_nowhere.alpha": torch.tensor(1.0)})
    monkeypatch.setattr(sys, "argv", ["dreambooth", "generate", "toyworld", "--lora", str(path)])
    with pytest.raises(SystemExit) as exit_info:
        main.main()
    said = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert f"--lora='{path}': lora_unet_nowhere.alpha binds to no layer" in said
    assert len(said.strip().splitlines()) == 1


LIGHT = """
import sys
from pathlib import Path
from dreambooth_ray.adapters.adapter_source import locate_adapters
assert locate_adapters([sys.argv[1]], Path(sys.argv[2]), "--lora")
assert not {"torch", "diffusers", "peft"} & sys.modules.keys()
"""


def test_an_adapter_is_looked_at_without_torch(toy_model: Path, style: Path) -> None:
    subprocess.run([sys.executable, "-c", LIGHT, str(style), str(toy_model)], check=True)


def test_images_say_their_adapters(
    tmp_path: Path, style: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_inference_steps": 2, "quiet": True}
    (plain,) = api.generate("toyworld", "a robot", **options)
    (styled,) = api.generate("toyworld", "a robot", loras=[f"{style}:0.8"], **options)
    assert plain.tobytes() != styled.tobytes()
    argv = ["dreambooth", "generate", "toyworld", "--prompt", "a robot", "--lora", f"{style}:0.8",
            "--num-inference-steps", "2", "--out", str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as exit_info:
        main.main()
    assert not exit_info.value.code
    with Image.open(capsys.readouterr().out.strip()) as image:
        assert image.tobytes() == styled.tobytes()
        (use,) = json.loads(image.text["adapters"])  # type: ignore[attr-defined]
    assert use["weight"] == 0.8
    assert use["name"].startswith("style.safetensors@")
    with pytest.raises(ConfigError, match=r"weight=11\.0"):
        api.generate("toyworld", "a robot", loras=[f"{style}:11"], **options)
    with pytest.raises(ConfigError, match="twice"):
        api.generate("toyworld", "a robot", loras=[str(style), str(style)], **options)
