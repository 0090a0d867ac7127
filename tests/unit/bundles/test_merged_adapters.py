"""Several adapters as one: drawn with as they are together, whatever the sum is written as."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import dreambooth_ray
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.cli import main
from dreambooth_ray.config.adapter_mix import AdapterUse
from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory, model_hash
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.storage import manifest
from tests.unit.adapters.published_keys import make_tensors, write_file

REQUEST: dict[str, Any] = {"prompt": "a red robot", "seed": 1, "num_inference_steps": 3}


def write_style(path: Path, toy_model: Path, ends: tuple[str, ...], rank: int, kind: str) -> Path:
    table = LayerTable.of_directory(toy_model)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in table.layers["unet"].items():
        layer = f"lora_unet_{name.replace('.', '_')}"
        if not name.endswith(ends):
            continue
        if kind == "loha":
            for number in (1, 2):
                shapes[f"{layer}.hada_w{number}_a"] = (shape[0], rank)
                shapes[f"{layer}.hada_w{number}_b"] = (rank, shape[1])
            continue
        shapes[f"{layer}.lora_down.weight"] = (rank, *shape[1:])
        shapes[f"{layer}.lora_up.weight"] = (shape[0], rank, *(1 for _ in shape[2:]))
        shapes[f"{layer}.alpha"] = ()
    return write_file(path, make_tensors(shapes, rank))


@pytest.fixture(scope="module")
def sources(
    toy_model: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    bundle = folder / "own"
    bundle.mkdir()
    (bundle / "adapter").symlink_to(adapters["one"])
    about: dict[str, object] = {
        "kind": "adapter", "base_model": "toyworld", "base_hash": model_hash(toy_model),
        "prompt": "a sks robot",
    }  # fmt: skip
    manifest.write_local_manifest(bundle, about)
    return {
        "style": write_style(folder / "style.safetensors", toy_model, ("to_q", "to_v"), 3, "lora"),
        "conv": write_style(folder / "conv.safetensors", toy_model, ("conv1", "to_k"), 2, "lora"),
        "loha": write_style(folder / "loha.safetensors", toy_model, ("to_out.0",), 2, "loha"),
        "own": bundle,
    }


def draw(directory: Path, adapters: dict[str, Path], weights: dict[str, float]) -> Tensor:
    engine = Engine(directory)
    for name in weights:
        path = adapters[name]
        engine.add_adapter(name, path / "adapter" if path.is_dir() else path)
    uses = [AdapterUse(name, weight) for name, weight in weights.items()]
    return engine.sample([Request(**REQUEST, adapters=uses)])[0].latents


def merge(sources: dict[str, Path], weights: dict[str, float], out: Path, **options: Any) -> Any:
    named = [f"{sources[name]}:{weight}" for name, weight in weights.items()]
    return dreambooth_ray.merge(named, out, **options)


def test_a_bundle_of_lora_loses_nothing(
    sources: dict[str, Path], toy_model: Path, tmp_path: Path
) -> None:
    weights = {"style": 0.7, "conv": -0.4, "own": 1.1}
    report = merge(sources, weights, tmp_path / "sum")
    assert report.error == 0
    expected = draw(toy_model, sources, weights)
    plain = draw(toy_model, sources, {})
    assert (expected - plain).abs().max() > 0.1
    # By peft, which fuses a bundle into its base.
    fused = draw(model_directory(str(tmp_path / "sum")), sources, {})
    assert (fused - expected).abs().max() <= 1e-4
    # As an adapter beside others, as it was before.
    (tmp_path / "own").symlink_to(tmp_path / "sum")
    beside = draw(toy_model, {"own": tmp_path / "own"}, {"own": 1.0})
    assert (beside - expected).abs().max() <= 1e-4
    about = manifest.parse_manifest((tmp_path / "sum" / "manifest.json").read_bytes(), "x")[0]
    assert about["prompt"] == "a sks robot"
    assert [source["weight"] for source in about["sources"]] == [0.7, -0.4, 1.1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["lora", "kohya"])
def test_a_merged_bundle_is_exported(sources: dict[str, Path], tmp_path: Path, form: str) -> None:
    """Layers of other ranks keep their scales; diffusers reads each back."""
    merge(sources, {"style": 0.7, "conv": -0.4}, tmp_path / "sum", base="toyworld")
    out = export_run(str(tmp_path / "sum"), form, tmp_path / "sum.safetensors")
    assert out.stat().st_size


def test_a_model_takes_every_kind(
    sources: dict[str, Path], adapters: dict[str, Path], toy_model: Path, tmp_path: Path
) -> None:
    weights = {"style": 0.7, "loha": -0.4, "own": 1.1, "dora": 0.5}
    every = sources | {"dora": adapters["dora"]}
    assert merge(every, weights, tmp_path / "model", into="model") is None
    engine = Engine(toy_model)
    for name in weights:
        path = every[name]
        engine.add_adapter(name, path / "adapter" if name == "own" else path)
    uses = [AdapterUse(name, weight) for name, weight in weights.items()]
    expected = engine.sample([Request(**REQUEST, adapters=uses)])[0].latents
    drawn = draw(model_directory(str(tmp_path / "model")), {}, {})
    assert (drawn - expected).abs().max() <= 1e-4


def test_other_kinds_need_a_rank_in_a_bundle(
    sources: dict[str, Path], toy_model: Path, tmp_path: Path
) -> None:
    weights = {"own": 1.0, "loha": 0.5}
    with pytest.raises(ConfigError, match=r"--rank is not given.*--into model"):
        merge(sources, weights, tmp_path / "sum")
    low = merge(sources, weights, tmp_path / "low", rank=1)
    high = merge(sources, weights, tmp_path / "high", rank=4)
    assert 0 < low.error < 1
    assert high.error < 1e-6
    expected = draw(toy_model, sources, weights)
    drawn = draw(model_directory(str(tmp_path / "high")), {}, {})
    assert (drawn - expected).abs().max() <= 1e-4


def test_a_merged_bundle_is_peft_format(
    sources: dict[str, Path], toy_model: Path, tmp_path: Path
) -> None:
    merge(sources, {"style": 1.0, "conv": 1.0}, tmp_path / "sum", base="toyworld", half=True)
    unet = load_components(toy_model).unet
    model = PeftModel.from_pretrained(unet, str(tmp_path / "sum" / "adapter" / "unet"))
    config = model.peft_config["default"]
    assert config.r == config.lora_alpha == 3
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and m.lora_A]
    assert {layer.scaling["default"] for layer in layers} == {1.0}
    assert {layer.r["default"] for layer in layers} == {2, 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--base is not given"),
        (["--base", "toyworld", "--into", "lora"], "--into='lora' is none of bundle, model"),
        (["--base", "toyworld", "--rank", "0"], "--rank=0 must be at least 1"),
        (["--base", "toyworld", "--into", "model", "--rank", "2"], "--rank is for --into bundle"),
        (["--base", "toyworld-flow"], "binds to no layer of this model of Z-Image"),
        (["--base", "nothing-here"], "--base='nothing-here'"),
    ],
)
def test_a_merge_that_can_not_be_is_refused_in_one_line(
    sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    argv = ["dreambooth", "merge", str(sources["style"]), "--out", str(tmp_path / "o"), *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as exit_info:
        main.main()
    said = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_what_is_there_is_not_written_over(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is there already"):
        merge(sources, {"own": 1.0}, tmp_path)
    with pytest.raises(ConfigError, match="SOURCE is not given"):
        dreambooth_ray.merge([], tmp_path / "sum")
    merge(sources, {"own": 1.0}, tmp_path / "sum")
    with pytest.raises(ConfigError, match="itself made of adapters"):
        merge(sources, {"style": 1.0}, tmp_path / "next", base=str(tmp_path / "sum"))
    assert not list(tmp_path.glob("*.partial"))
    assert torch.is_tensor(draw(model_directory(str(tmp_path / "sum")), {}, {}))
