from pathlib import Path

import pytest

from tests.families.proven_families import PROVEN_MODELS
from tests.families.tiny_models import TINY_MODELS, build_tiny


@pytest.fixture(scope="session")
def tiny_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each tiny model, by its name in TINY_MODELS; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny-models")
    return _TinyDirectories(folder)


class _TinyDirectories(dict[str, Path]):
    """Built when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Path:
        assert name in TINY_MODELS
        self[name] = build_tiny(name, self._folder / name)
        return self[name]


@pytest.fixture(params=PROVEN_MODELS, scope="module")
def proven(request: pytest.FixtureRequest) -> str:
    """The name of each model that the proof is for, in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def tiny_directory(proven: str, tiny_directories: dict[str, Path]) -> Path:
    """That model, as its pipeline reads it; not to be changed."""
    return tiny_directories[proven]
