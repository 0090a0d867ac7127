"""Every damage is one: diffusers itself fails on it, or what it loads is not the model."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.families.hostile_directories import DAMAGES, POISONED, pickle_weights
from tests.families.tiny_models import build_tiny

PARTS = [("sdxl", "text_encoder_2"), ("z-image", "transformer"), ("flux2-klein", "vae")]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: build_tiny(family, tmp_path_factory.mktemp("tiny") / family) for family, _ in PARTS
    }


def _load(directory: Path) -> Any:
    return DiffusionPipeline.from_pretrained(
        directory, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )


# diffusers takes these as they come, of some parts: they are ours to find.
_LOADED_ANYHOW = (
    "other pipeline",
    "other class in the index",
    "other class in the part",
    "NaN",
    "tensor missing",
)


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_every_damage_spoils_the_directory(
    good: dict[str, Path], tmp_path: Path, family: str, part: str
) -> None:
    for number, (name, damage) in enumerate(DAMAGES.items()):
        directory = tmp_path / str(number)
        shutil.copytree(good[family], directory)
        damage.apply(directory, part)
        assert damage.expected_word(part)
        if name in _LOADED_ANYHOW:
            continue
        with pytest.raises(Exception, match=r".") as refused:
            _load(directory)
        assert not isinstance(refused.value, AssertionError), name


@pytest.mark.parametrize("damage", ["NaN", "tensor missing", "other class in the part"])
def test_what_diffusers_may_load_differs(
    good: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(good["z-image"], directory)
    DAMAGES[damage].apply(directory, "transformer")
    changed = [
        path.relative_to(directory)
        for path in directory.rglob("*")
        if path.is_file()
        and path.read_bytes() != (good["z-image"] / path.relative_to(directory)).read_bytes()
    ]
    assert len(changed) == 1
    assert changed[0].parts[0] == "transformer"


def test_a_pickle_that_is_read_leaves_its_mark(good: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(good["z-image"], directory)
    pickle_weights(directory, "transformer")
    assert not (directory / POISONED).exists()
    torch.load(directory / "transformer/diffusion_pytorch_model.bin", weights_only=False)
    assert (directory / POISONED).exists()
