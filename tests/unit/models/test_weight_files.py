from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.weight_files import find_weights, read_header
from tests.published_models import SD15, SD21, build_published

STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("name", "variant", "shard"),
    [(SD15, "fp16", "10GB"), (SD15, None, "1MB"), (SD21, "fp16", "1MB")],
)
def test_variants_and_shards_load_with_the_weights_that_they_hold(
    tmp_path: Path, name: str, variant: str | None, shard: str
) -> None:
    directory = build_published(name, tmp_path / "m", variant, shard)
    files = find_weights(directory / "unet", "unet")
    assert files.variant == variant
    assert len(files.paths) > 1 if shard == "1MB" else len(files.paths) == 1
    parts = load_components(model_directory(str(directory)))
    shapes = {k: list(v.shape) for k, v in parts.unet.state_dict().items()}
    assert files.read_shapes() == shapes
    whole = load_components(build_published(name, tmp_path / "whole")).unet.state_dict()
    for key, weight in parts.unet.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, whole[key].half().float() if variant else whole[key]), key


def test_whole_files_come_before_variants_and_fp16_before_others(tmp_path: Path) -> None:
    def write(name: str) -> None:
        save_file({"x": torch.zeros(2)}, tmp_path / name)

    write(f"{STEM}.non_ema.safetensors")
    assert find_weights(tmp_path, "unet").variant == "non_ema"
    write(f"{STEM}.fp16.safetensors")
    assert find_weights(tmp_path, "unet").variant == "fp16"
    write(f"{STEM}.safetensors")
    assert find_weights(tmp_path, "unet").variant is None


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no weights"):
        find_weights(tmp_path, "unet")
    (tmp_path / "v1-5-pruned.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"v1-5-pruned.*neither {STEM}\.safetensors"):
        find_weights(tmp_path, "unet")
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(
        '{"weight_map": {"x": "a.safetensors"}}'
    )
    with pytest.raises(ConfigError, match=r"a\.safetensors is missing.*index\.json names it"):
        find_weights(tmp_path, "unet")


@pytest.mark.parametrize("kept_bytes", [0, 7, 20, -1])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(4, 5)}, path)
    assert read_header(path)["x"]["shape"] == [4, 5]
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ConfigError, match=r"model\.safetensors is no whole safetensors file"):
        read_header(path)


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438167540\n"
    )
    with pytest.raises(ConfigError, match=r"model\.safetensors is a pointer.*git lfs pull"):
        read_header(path)
