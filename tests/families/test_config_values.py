"""Configurations whose values are of another type, or far off: named, and never a traceback."""

import json
import shutil
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.model_directory import model_outline
from tests.families.proven_families import TRAINED_MODELS

VALUES = [None, "x", 1.5, -1, 0, 10**9, [], {}, [None], [10**9], True]


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_a_value_of_another_type_is_refused_by_its_file(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_directories[name], directory)
    failures = []
    for path in sorted(directory.rglob("*.json")):
        if path.name in ("tokenizer.json", "vocab.json") or (
            path.name.endswith("index.json") and path.parent != directory
        ):
            continue
        text = path.read_text()
        config = json.loads(text)
        for key in config:
            for value in VALUES:
                path.write_text(json.dumps({**config, key: value}))
                try:
                    model_outline(str(directory))
                except ConfigError as error:
                    if "\n" in str(error):
                        failures.append((path.parent.name, key, value, "lines"))
                except Exception as error:
                    failures.append((path.parent.name, path.name, key, value, repr(error)[:150]))
        path.write_text(text)
    print(name, len(failures))
    for f in failures:
        print("   ", f)
    assert not failures
