"""A file that can't be written is named before the work for it begins."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dreambooth_ray.cli.main import app
from dreambooth_ray.errors import DataError, StorageError

PHOTOS = "photos"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / PHOTOS).mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / PHOTOS / "a.png")
    (tmp_path / "file").write_text("x")
    return tmp_path


BESIDE_PHOTOGRAPHS = [
    (["crops", "toy-robot", "subject.photos={}"], "--out"),
    (["doctor", "{}"], "--out"),
    (["lr", "toy-robot", "subject.photos={}"], "--plot"),
]


@pytest.mark.parametrize("out", [PHOTOS, "file/x.png"])
@pytest.mark.parametrize(
    ("arguments", "option"),
    [*BESIDE_PHOTOGRAPHS, (["identifier", "toyworld", "--class-noun", "robot"], "--out")],
)
def test_it_is_named(folder: Path, out: str, arguments: list[str], option: str) -> None:
    pytest.importorskip("matplotlib")
    filled = [argument.format(folder / PHOTOS) for argument in arguments]
    result = CliRunner().invoke(app, [*filled, option, str(folder / out)])
    assert isinstance(result.exception, StorageError)
    assert f"{option}={str(folder / out)!r} can't be written" in str(result.exception)


@pytest.mark.parametrize("name", ["a.png", "sheet.JPG"])
@pytest.mark.parametrize(("arguments", "option"), BESIDE_PHOTOGRAPHS)
def test_it_never_lies_among_the_photographs(
    folder: Path, name: str, arguments: list[str], option: str
) -> None:
    pytest.importorskip("matplotlib")
    photos = folder / PHOTOS
    before = (photos / "a.png").read_bytes()
    out = photos / ".." / PHOTOS / name
    filled = [argument.format(photos) for argument in arguments]
    result = CliRunner().invoke(app, [*filled, option, str(out)])
    assert isinstance(result.exception, StorageError)
    assert str(result.exception).startswith(
        f"{option}={str(out)!r} would be taken for a photograph"
    )
    assert [path.name for path in photos.iterdir()] == ["a.png"]
    assert (photos / "a.png").read_bytes() == before


def test_the_doctor_names_its_own_argument(folder: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(folder / "nothing")])
    assert isinstance(result.exception, DataError)
    assert str(result.exception).startswith("FOLDER=")


def test_the_doctors_page_holds_names_that_are_not_utf_8(folder: Path) -> None:
    (folder / PHOTOS / "a.png").rename(folder / PHOTOS / "\udcff.png")
    out = folder / "page.html"
    result = CliRunner().invoke(app, ["doctor", str(folder / PHOTOS), "--out", str(out), "--json"])
    assert result.exception is None
    assert "\\udcff.png" in out.read_text("utf-8")
