"""Tokenizers and schedulers of which a file was cut off, of every family: one line each."""

import shutil
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import model_outline
from tests.families.proven_families import TRAINED_MODELS

# What a loader passes over where the others are there; each is tried on its own below.
_PASSED_OVER = {"vocab.json", "merges.txt", "spiece.model"}


def list_files(directory: Path) -> list[Path]:
    """All that is read of tokenizers and scheduler."""
    family = find_family(directory)
    folders = {part.tokenizer for part in family.text_encoders} | {"scheduler"}
    found = []
    for folder in sorted(folders):
        is_whole = (directory / folder / "tokenizer.json").is_file()
        found += [
            path
            for path in sorted((directory / folder).iterdir())
            if not (is_whole and path.name in _PASSED_OVER)
        ]
    return found


@pytest.mark.parametrize("share", [0.0, 0.4, 0.97])
@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_a_file_that_was_cut_off_is_named(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str, share: float
) -> None:
    good = tiny_directories[name]
    model_outline(str(good))
    for path in list_files(good):
        directory = tmp_path / path.parent.name / path.name
        shutil.copytree(good, directory)
        damaged = directory / path.relative_to(good)
        content = path.read_bytes()
        damaged.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ConfigError) as refused:
            model_outline(str(directory))
        assert "\n" not in str(refused.value)
        assert str(damaged.parent) in str(refused.value)


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_a_vocabulary_and_its_merges_are_read_where_they_are_alone(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Tokenizers as some authors publish them, without the file that holds both."""
    for part in find_family(tiny_directories[name]).text_encoders:
        if not (tiny_directories[name] / part.tokenizer / "vocab.json").is_file():
            continue
        directory = tmp_path / part.name
        shutil.copytree(tiny_directories[name], directory)
        (directory / part.tokenizer / "tokenizer.json").unlink(missing_ok=True)
        path = directory / part.tokenizer / "vocab.json"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ConfigError, match=r"vocab\.json can't be read"):
            model_outline(str(directory))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('{"_class_name": "DDIMScheduler"}', "DDIMScheduler"),
        ('{"shift": -1.0}', "shift=-1.0"),
        ('{"base_image_seq_len": "many"}', "base_image_seq_len='many'"),
    ],
)
@pytest.mark.parametrize("name", [n for n in TRAINED_MODELS if n not in ("sd15", "sdxl")])
def test_a_scheduler_of_another_kind_is_named(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str, keys: str, said: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_directories[name], directory)
    path = directory / "scheduler" / "scheduler_config.json"
    path.write_text(keys)
    with pytest.raises(ConfigError, match=said) as refused:
        model_outline(str(directory))
    assert str(path) in str(refused.value)
