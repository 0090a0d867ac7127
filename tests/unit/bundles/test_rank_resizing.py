"""An adapter at a lower rank: the best there is, with the error it says."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import dreambooth_ray
from dreambooth_ray.adapters.low_rank import cut_matrix, cut_product
from dreambooth_ray.cli import main
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.peft_files import WEIGHTS
from dreambooth_ray.storage import manifest
from tests.unit.adapters.published_keys import write_file

LAYER, OTHER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", "lora_te_x"


@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 7), st.integers(0, 9)
)
def test_a_cut_is_the_best_of_its_rank(
    outputs: int, inputs: int, own_rank: int, rank: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(own_rank, inputs, generator=generator)
    up = torch.randn(outputs, own_rank, generator=generator)
    matrix = up @ down
    values = torch.linalg.svdvals(matrix)
    for product in (cut_product(down, up, rank), cut_matrix(matrix, rank)):
        assert len(product.down) == product.up.shape[1] <= max(own_rank, rank)
        difference = (matrix - product.up @ product.down).norm()
        torch.testing.assert_close(difference, values[rank:].norm(), atol=1e-4, rtol=1e-3)
        assert product.error == pytest.approx(float(difference / matrix.norm()), abs=1e-3)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        f"{LAYER}.lora_down.weight": torch.randn(4, 16),
        f"{LAYER}.lora_up.weight": torch.randn(12, 4),
        f"{LAYER}.alpha": torch.tensor(2.0),
        f"{OTHER}.lora_down.weight": torch.randn(3, 5, 3, 3),
        f"{OTHER}.lora_up.weight": torch.randn(7, 3, 1, 1),
    }


def multiply(tensors: dict[str, Tensor], layer: str) -> Tensor:
    down, up = (tensors[f"{layer}.lora_{x}.weight"].flatten(1) for x in ("down", "up"))
    alpha = tensors.get(f"{layer}.alpha")
    return up @ down * (1.0 if alpha is None else float(alpha) / len(down))


def test_a_file_keeps_its_names_and_says_what_it_lost(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    path = write_file(tmp_path / "style.safetensors", tensors, {"ss_network_dim": "4", "a": "b"})
    report = dreambooth_ray.resize(str(path), tmp_path / "small.safetensors", rank=2)
    small = load_file(tmp_path / "small.safetensors")
    assert small.keys() == tensors.keys()
    lost, whole = 0.0, 0.0
    for layer in (LAYER, OTHER):
        difference = (multiply(tensors, layer) - multiply(small, layer)).norm()
        error = float(difference / multiply(tensors, layer).norm())
        assert report.by_layer[layer] == pytest.approx(error, rel=1e-4)
        assert 0 < error < 1
        lost += float(difference) ** 2
        whole += float(multiply(tensors, layer).norm()) ** 2
    assert report.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert small[f"{OTHER}.lora_down.weight"].shape == (2, 5, 3, 3)
    assert small[f"{OTHER}.lora_up.weight"].shape == (7, 2, 1, 1)
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt", "ss_network_dim": "2", "ss_network_alpha": "2", "a": "b",
        }  # fmt: skip
    same = dreambooth_ray.resize(str(path), tmp_path / "same.safetensors", rank=64)
    assert same.error == 0
    torch.testing.assert_close(
        multiply(load_file(tmp_path / "same.safetensors"), LAYER), multiply(tensors, LAYER)
    )


def test_loha_becomes_lora_and_magnitudes_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    factors = {f"hada_w{k}_{x}": torch.randn(*((8, 2) if x == "a" else (2, 6)))
               for k in (1, 2) for x in "ab"}  # fmt: skip
    file = {f"{LAYER}.{role}": factor for role, factor in factors.items()}
    file |= {f"{LAYER}.alpha": torch.tensor(1.0), f"{LAYER}.dora_scale": torch.rand(8, 1)}
    path = write_file(tmp_path / "loha.safetensors", file)
    report = dreambooth_ray.resize(str(path), tmp_path / "lora.safetensors", rank=4)
    assert report.error < 1e-6
    small = load_file(tmp_path / "lora.safetensors")
    expected = 0.5 * (factors["hada_w1_a"] @ factors["hada_w1_b"])
    expected = expected * (factors["hada_w2_a"] @ factors["hada_w2_b"])
    torch.testing.assert_close(multiply(small, LAYER), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(small[f"{LAYER}.dora_scale"], file[f"{LAYER}.dora_scale"])


def test_a_run_gives_a_bundle(toy_model: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "own"
    bundle.mkdir()
    (bundle / "adapter").symlink_to(adapters["dora"])
    about: dict[str, object] = {"base_model": "toyworld", "base_hash": model_hash(toy_model)}
    manifest.write_local_manifest(bundle, about)
    report = dreambooth_ray.resize(str(bundle), tmp_path / "small", rank=2)
    assert any(name.startswith("unet.") for name in report.by_layer)
    settings = json.loads((tmp_path / "small/adapter/unet/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_dora"]) == (2, 2, True)
    (image,) = dreambooth_ray.generate(
        tmp_path / "small", "a robot", num_inference_steps=1, quiet=True
    )
    assert image.size == (64, 64)


def test_the_verb_prints_every_layer(
    tmp_path: Path,
    tensors: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_file(tmp_path / "style.safetensors", tensors)
    out = tmp_path / "small.safetensors"
    monkeypatch.setattr(
        sys, "argv", ["dreambooth", "resize", str(path), "--rank", "1", "--out", str(out)]
    )
    with pytest.raises(SystemExit) as exit_info:
        main.main()
    assert not exit_info.value.code
    first, second, total, printed = capsys.readouterr().out.splitlines()
    assert {first[10:], second[10:]} == {LAYER, OTHER}
    assert total.endswith("all 2 layers")
    assert 0 < float(total[:8]) < 1
    assert printed == str(out)


def test_what_can_not_be_resized_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = write_file(tmp_path / "style.safetensors", tensors)
    out = tmp_path / "small.safetensors"
    with pytest.raises(ConfigError, match="--rank=0 must be at least 1"):
        dreambooth_ray.resize(str(path), out, rank=0)
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        dreambooth_ray.resize(str(path), tmp_path / "folder", rank=1)
    tensors[f"{LAYER}.lora_up.weight"][0, 0] = torch.nan
    path = write_file(tmp_path / "nan.safetensors", tensors)
    with pytest.raises(ConfigError, match=r"SOURCE=.*not finite"):
        dreambooth_ray.resize(str(path), out, rank=1)
    del tensors[f"{LAYER}.lora_up.weight"]
    path = write_file(tmp_path / "half.safetensors", tensors)
    with pytest.raises(ConfigError, match="do not go together"):
        dreambooth_ray.resize(str(path), out, rank=1)
    assert not out.exists()
    assert not list(tmp_path.glob("*.partial*"))


def test_a_folder_of_other_things_is_no_adapter(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    storage, out = tmp_path / "runs", tmp_path / "small"
    adapter = storage / "one" / "bundle" / "adapter"
    adapter.mkdir(parents=True)
    write_file(adapter / WEIGHTS, tensors)
    for folder in (storage, tmp_path):
        with pytest.raises(ConfigError, match=rf"SOURCE=.*{folder} has no {WEIGHTS} in it"):
            dreambooth_ray.resize(str(folder), out, rank=1)
    empty = write_file(tmp_path / "empty.safetensors", {})
    with pytest.raises(ConfigError, match=r"SOURCE=.*holds no tensors"):
        dreambooth_ray.resize(str(empty), tmp_path / "x.safetensors", rank=1)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "empty.safetensors"}
