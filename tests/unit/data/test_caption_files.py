import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_ray.data.image_shapes import ShapeRule
from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.data.quality.caption_checks import check_captions
from dreambooth_ray.data.remote_images import fetch_photographs_folder, upload_photographs
from dreambooth_ray.data.subject import read_subject_photographs
from dreambooth_ray.errors import DataError
from dreambooth_ray.storage.store import Store


def save(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def read_captions(folder: Path) -> list[str]:
    return [
        photograph.caption
        for photograph in read_subject_photographs(
            folder, "default", ShapeRule.make_square_rule(16)
        )
    ]


@pytest.mark.parametrize(
    ("photograph", "caption"),
    [
        ("a.png", "a.txt"),
        ("a.png", "a.caption"),
        ("a.png", "a.TXT"),
        ("a.png", "a.Caption"),
        ("a.png", "a.png.txt"),
        ("IMG_1.JPG", "img_1.txt"),
        (unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "café.txt")),
        ("a b #1.png", "a b #1.txt"),
        ("a.b.png", "a.b.txt"),
    ],
)
def test_every_common_name_of_a_caption_is_found(
    photograph: str, caption: str, tmp_path: Path
) -> None:
    save(tmp_path, photograph)
    (tmp_path / caption).write_text("a sks robot")
    assert read_captions(tmp_path) == ["a sks robot"]
    assert check_captions(find_photographs(tmp_path), "sks", "robot") == []


def test_two_captions_of_a_photograph_agree_or_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    for name in ("a.txt", "a.caption"):
        (tmp_path / name).write_text("a sks robot\n")
    assert read_captions(tmp_path) == ["a sks robot"]
    (tmp_path / "a.caption").write_text("another")
    with pytest.raises(
        DataError, match=r"a\.png has two captions that differ, a\.caption and a\.txt"
    ):
        read_captions(tmp_path)


def test_a_name_that_is_just_the_same_goes_first(tmp_path: Path) -> None:
    save(tmp_path, "A.png", "a.png")
    (tmp_path / "A.txt").write_text("upper")
    (tmp_path / "a.txt").write_text("lower")
    assert read_captions(tmp_path) == ["upper", "lower"]


def write_rows(folder: Path, *rows: dict[str, str], name: str = "metadata.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.jsonl"])
def test_captions_of_a_folder_are_lines_of_one_file(name: str, tmp_path: Path) -> None:
    save(tmp_path, "A.png", "b.png", "c.png", "d.png")
    (tmp_path / "c.txt").write_text("three")
    rows = [{"file_name": "a.PNG", "text": "one"}, {"file_name": "b.png", "text": "two"}]
    write_rows(tmp_path, *rows, {"file_name": "elsewhere.png", "text": "x"}, name=name)
    assert read_captions(tmp_path) == ["one", "two", "three", "default"]


def test_a_line_and_a_file_that_differ_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one")
    write_rows(tmp_path, {"file_name": "b.png", "text": "x"}, {"file_name": "a.png", "text": "two"})
    with pytest.raises(DataError, match=r"that differ, a\.txt and metadata\.jsonl line 2; remove"):
        read_captions(tmp_path)


def test_lines_of_names_that_differ_in_case_alone(tmp_path: Path) -> None:
    save(tmp_path, "A.png", "a.png")
    rows = [{"file_name": name, "text": name} for name in ("A.png", "a.png")]
    write_rows(tmp_path, *rows)
    assert read_captions(tmp_path) == ["A.png", "a.png"]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        (
            "a.txt",
            b"x" * 1_000_000,
            r"a\.txt has 1,000,000 bytes, above 16,384; shorten",
        ),
        ("a.txt", b"\0" * 12, r"a\.txt holds NUL, which no text has"),
        ("metadata.jsonl", b"\0" * 12, r"metadata\.jsonl holds NUL"),
        ("metadata.jsonl", b'{"file_name": "a.png"', r"metadata\.jsonl, line 1 is not JSON"),
    ],
)
def test_bad_captions_end_a_training_before_it_starts(
    name: str, data: bytes, match: str, tmp_path: Path
) -> None:
    save(tmp_path, "a.png")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=match):
        read_captions(tmp_path)


def test_captions_go_to_storage_with_their_photographs(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    save(folder, "a.png", "b.png")
    (folder / "a.caption").write_text("one")
    (folder / "B.TXT").write_text("two")
    uri = upload_photographs(folder, Store(str(tmp_path / "out")))
    assert read_captions(fetch_photographs_folder(f"file://{uri}")) == ["one", "two"]
    for path in (folder / "a.caption", folder / "B.TXT"):
        path.unlink()
    write_rows(folder, *({"file_name": f"{name}.png", "text": name} for name in "ab"))
    uri = upload_photographs(folder, Store(str(tmp_path / "out")))
    assert read_captions(fetch_photographs_folder(f"file://{uri}")) == ["a", "b"]


def test_a_folder_of_kohyas_is_named_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "10_sks robot").mkdir()
    save(tmp_path / "10_sks robot", "a.png")
    with pytest.raises(
        DataError, match=r"the folder 10_sks robot/ with 1 photograph.*give the folder with"
    ):
        find_photographs(tmp_path)
