from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dreambooth_ray.cli.main import app
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.crop_sheet import draw_crops
from dreambooth_ray.data.masks import find_mask, read_mask
from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.data.remote_images import fetch_photographs_folder, upload_photographs
from dreambooth_ray.data.run_inputs import record_photographs
from dreambooth_ray.data.subject import (
    Photograph,
    find_mask_warnings,
    read_photographs_for_subject_config,
)
from dreambooth_ray.errors import DataError
from dreambooth_ray.storage.store import Store

BOX = (60, 30, 100, 70)


def make_mask(size: tuple[int, int] = (120, 90)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, BOX)
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    image = Image.new("RGB", (120, 90), (0, 0, 250))
    image.paste((250, 0, 0), BOX)
    image.save(photos / "a.png")
    return photos


def read(folder: Path, *overrides: str) -> tuple[Config, list[Photograph]]:
    config = parse_config(
        f"subject: {{photos: {folder}, class_noun: dog}}", "x",
        ["train.resolution=64", "train.mask_background=0.25", *overrides],
    )  # fmt: skip
    return config, read_photographs_for_subject_config(config, config.subject)


@pytest.mark.parametrize(
    "settings",
    [
        ("train.crop=center",),
        ("train.crop=smart",),
        ("train.buckets=true", "train.bucket_step_px=16"),
        ("train.buckets=true", "train.bucket_step_px=16", "train.crop=none"),
        ("train.resolution=[64, 48]",),
    ],
)
def test_a_mask_is_cut_with_its_photograph(folder: Path, settings: tuple[str, ...]) -> None:
    make_mask().save(folder / "a.mask.png")
    _, (photograph,) = read(folder, *settings)
    for view in photograph.at_all_resolutions:
        assert view.mask is not None
        assert view.mask.size == view.image.size
        is_subject, reds = np.asarray(view.mask) > 127, np.asarray(view.image)[..., 0] > 127
        assert (is_subject != reds).mean() < 0.02
        assert is_subject.any()


def test_transparency_is_a_mask(folder: Path) -> None:
    image = Image.open(folder / "a.png").convert("RGBA")
    image.putalpha(make_mask())
    image.save(folder / "a.png")
    _, (photograph,) = read(folder)
    assert photograph.mask is not None
    assert 0 < np.asarray(photograph.mask).mean() < 128


def damage(kind: str, mask: Image.Image) -> Image.Image:
    if kind == "another size":
        return mask.resize((60, 45))
    return Image.new("L", mask.size, 0) if kind == "empty" else mask.point(lambda v: 255 - v)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another size", r"a\.mask\.png is 60x45 px, and its photograph is 120x90 px"),
        ("empty", r"a\.mask\.png is empty: nothing in it is white"),
        ("inverted", r"a\.mask\.png looks inverted: 100% of its edge"),
    ],
)
def test_a_bad_mask_is_refused_by_name(folder: Path, kind: str, words: str) -> None:
    middle = Image.new("L", (120, 90), 0)
    middle.paste(255, (25, 20, 95, 70))
    damage(kind, middle).save(folder / "a.mask.png")
    with pytest.raises(DataError, match=words):
        read(folder)


def test_a_file_that_is_no_image_is_named(folder: Path) -> None:
    (folder / "a.mask.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.mask\.png is not a readable mask"):
        read(folder)


def test_a_mask_outside_the_cut_is_refused(folder: Path) -> None:
    mask = Image.new("L", (120, 90), 0)
    mask.paste(255, (0, 0, 10, 90))
    mask.save(folder / "a.mask.png")
    with pytest.raises(
        DataError, match=r"a\.png: its mask lies outside of what train\.crop=center"
    ):
        read(folder)
    _, (photograph,) = read(folder, "train.crop=smart")
    assert photograph.mask is not None


def test_what_is_doubtful_is_said(folder: Path) -> None:
    with pytest.raises(DataError, match=r"mask_background=0\.25 and no photograph .* has a mask"):
        find_mask_warnings(*read(folder))
    make_mask().save(folder / "a.mask.png")
    make_mask().save(folder / "z.mask.png")
    Image.new("RGB", (120, 90)).save(folder / "b.png")
    assert find_mask_warnings(*read(folder)) == [
        "z.mask.png is the mask of no photograph",
        "b.png: without a mask, all of it counts as the subject",
    ]
    assert find_mask_warnings(*read(folder, "train.mask_background=null"))[1].startswith(
        "masks are not used, a.mask.png for one"
    )


def test_a_mask_is_no_photograph_and_goes_where_its_photograph_goes(
    folder: Path, tmp_path: Path
) -> None:
    make_mask().save(folder / "a.mask.png")
    assert [p.name for p in find_photographs(folder)] == ["a.png"]
    uploaded = fetch_photographs_folder(
        upload_photographs(folder, Store(f"memory://{tmp_path.name}"))
    )
    assert (uploaded / "a.mask.png").read_bytes() == (folder / "a.mask.png").read_bytes()


def test_another_mask_is_another_input(folder: Path) -> None:
    def record(*overrides: str) -> str:
        _, photographs = read(folder, *overrides)
        return record_photographs(photographs, ())[0].sha256

    make_mask().save(folder / "a.mask.png")
    first, without = record(), record("train.mask_background=null")
    make_mask().transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(folder / "a.mask.png")
    assert record() != first
    assert record("train.mask_background=null") == without


def test_the_sheet_is_dark_outside_a_mask(folder: Path) -> None:
    make_mask().save(folder / "a.mask.png")

    def count_blue(*overrides: str) -> int:
        _, photographs = read(folder, *overrides)
        (cell,) = draw_crops(photographs, is_squeezed=False)
        seen = np.asarray(cell.crop((262, 0, *cell.size)))
        return int((seen == (0, 0, 250)).all(axis=-1).sum())

    assert count_blue("train.mask_background=null") > 1000
    assert count_blue() == 0


def test_a_mask_is_found_whatever_the_case_of_its_name(folder: Path) -> None:
    make_mask().save(folder / "A.Mask.PNG", "PNG")
    config, (photograph,) = read(folder)
    assert photograph.mask is not None
    assert find_mask_warnings(config, [photograph]) == []
    other = folder / "a.mask.png"
    make_mask().save(other)
    assert find_mask(folder / "a.png") == other


def test_a_photograph_may_have_the_longest_name_that_there_is(folder: Path) -> None:
    (folder / "a.png").rename(folder / f"{'a' * 251}.png")
    config, photographs = read(folder)
    assert photographs[0].mask is None
    with pytest.raises(DataError, match="no photograph"):
        find_mask_warnings(config, photographs)


def test_grey_of_sixteen_bits_is_read_as_of_eight(folder: Path) -> None:
    mask = np.asarray(make_mask(), dtype=np.uint16)
    Image.fromarray(mask * 257).save(folder / "a.mask.png")
    assert np.array_equal(np.asarray(read_mask(folder / "a.png", (120, 90))), mask)
    Image.fromarray(mask * 64).save(folder / "a.mask.png")  # a quarter of white
    with pytest.raises(DataError, match="is empty"):
        read_mask(folder / "a.png", (120, 90))


def test_a_mask_of_another_format_is_named(folder: Path) -> None:
    make_mask().save(folder / "a.mask.png")
    make_mask().convert("RGB").save(folder / "b.mask.jpg")
    config, photographs = read(folder)
    assert find_mask_warnings(config, photographs)[0] == (
        "b.mask.jpg is taken for a photograph; the name of a mask ends in .mask.png"
    )


def test_the_sheet_of_crops_says_what_training_would(folder: Path) -> None:
    arguments = ["crops", "toy-robot", f"subject.photos={folder}", "train.mask_background=0.25"]
    out = ["--out", str(folder.parent / "sheet.png")]
    result = CliRunner().invoke(app, [*arguments, *out])
    assert isinstance(result.exception, DataError)
    assert "no photograph" in str(result.exception)
    make_mask().save(folder / "a.mask.png")
    make_mask().save(folder / "c.mask.png")
    result = CliRunner().invoke(app, [*arguments, *out])
    assert "c.mask.png is the mask of no photograph" in result.stderr
