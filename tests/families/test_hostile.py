"""g. Damaged model directories: one line each, exit code 2, nothing started."""

import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import model_directory as model_directory_module
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import model_directory, model_outline
from dreambooth_ray.preparation import prepare_run
from tests.families.hostile_directories import DAMAGES, POISONED
from tests.families.proven_families import TRAINED_MODELS
from tests.integration.conftest import dreambooth


@pytest.fixture
def damaged(tiny_directories: dict[str, Path], tmp_path: Path, name: str) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(tiny_directories[name], directory)
    return directory


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_every_damage_of_every_part_is_refused_in_one_line(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str, damage: str
) -> None:
    good = tiny_directories[name]
    model_directory(str(good))
    for part in find_family(good).networks:
        directory = tmp_path / part.name
        shutil.copytree(good, directory)
        DAMAGES[damage].apply(directory, part.name)
        # The values of weights are read last, once nothing else can be refused.
        looks = (model_directory,) if damage == "NaN" else (model_directory, model_outline)
        for look in looks:
            with pytest.raises(ConfigError) as refused:
                look(str(directory))
            text = str(refused.value)
            assert "\n" not in text
            assert DAMAGES[damage].expected_word(part.name) in text, part.name
            assert str(directory) in text
        assert not (directory / POISONED).exists()


def test_what_a_family_can_not_do_is_refused_before_weights_are_read(
    tiny_directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("all weights are read")

    monkeypatch.setattr(model_directory_module, "check_finite_weights", read)
    overrides = [f"model.uri={tiny_directories['z-image']}", f"storage.uri={tmp_path}"]
    for setting, said in (
        ("identifier.kind=learned", "identifier.kind=learned is not for Z-Image"),
        ("train.method=kv", "train.method=kv is not for Z-Image"),
        ("train.resolution=72", "train.resolution=72 is not a multiple of 16"),
        ("prior.solver=ddim", "prior.solver=ddim is not for Z-Image"),
    ):
        config = parse_config("subject: {photos: p, class_noun: robot}", "x", [*overrides, setting])
        with pytest.raises(ConfigError, match=said):
            prepare_run(config, Mock())


VERBS = {
    "preflight": ("preflight", "toy-robot.yaml"),
    "train": ("train", "toy-robot.yaml"),
    "generate": ("generate", "model", "--prompt", "a robot"),
}


# What each damage is told by is held above. Here every verb meets every family and every damage.
VERB_DAMAGES = "NaN", "tensor missing", "pickle", "other class in the part"
VERB_CASES = [
    (name, verb, VERB_DAMAGES[(i + j) % len(VERB_DAMAGES)])
    for i, name in enumerate(TRAINED_MODELS)
    for j, verb in enumerate(VERBS)
]


@pytest.mark.fault
@pytest.mark.parametrize(("name", "verb", "damage"), VERB_CASES)
def test_every_verb_refuses_before_anything_starts(
    damaged: Path, photos: Path, tmp_path: Path, name: str, verb: str, damage: str
) -> None:
    part = find_family(damaged).denoiser.name
    DAMAGES[damage].apply(damaged, part)
    settings = [f"subject.photos={photos}", f"model.uri={damaged}", "train.resolution=64"]
    arguments = [*VERBS[verb], *(settings if verb != "generate" else [])]
    started_s = time.monotonic()
    refused = dreambooth(*arguments, cwd=tmp_path)
    seconds = time.monotonic() - started_s
    assert refused.returncode == 2, refused.stderr
    lines = [line for line in refused.stderr.splitlines() if "warning" not in line]
    assert any(part in line for line in lines), (lines, f"{seconds:.1f} s")
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out" / "runs").exists()
    assert not (damaged / POISONED).exists()
