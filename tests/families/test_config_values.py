"""Configurations with values of another type, or far off: refused by a line, and no traceback."""

import json
import random
import shutil
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import model_outline
from tests.families.proven_families import TRAINED_MODELS

VALUES = [None, "x", 1.5, -1, 10**9, [], {}, [None]]
# Of all keys and values; the long run takes each.
NUM_DRAWN = 25


def find_failures(directory: Path, num_drawn: int | None) -> list[tuple[object, ...]]:
    paths = [directory / "model_index.json"]
    for part in find_family(directory).networks:
        paths += (directory / part.name).glob("*config.json")
    cases = [
        (path, key, value)
        for path in paths
        for key in json.loads(path.read_text())
        for value in VALUES
    ]
    if num_drawn is not None:
        cases = random.Random(directory.name).sample(cases, min(num_drawn, len(cases)))
    failures: list[tuple[object, ...]] = []
    for path, key, value in cases:
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | {key: value}))
        try:
            model_outline(str(directory))
        except ConfigError as error:
            if "\n" in str(error):
                failures.append((path.parent.name, key, value, str(error)))
        except Exception as error:
            failures.append((path.parent.name, key, value, repr(error)))
        path.write_text(text)
    return failures


@pytest.mark.parametrize("name", TRAINED_MODELS)
@pytest.mark.parametrize("num_drawn", [NUM_DRAWN, pytest.param(None, marks=pytest.mark.fault)])
def test_a_value_of_another_type_is_refused(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str, num_drawn: int | None
) -> None:
    directory = Path(shutil.copytree(tiny_directories[name], tmp_path / name))
    assert find_failures(directory, num_drawn) == []
