import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_ray.data.captions import check_captions
from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.data.remote_images import photographs_folder, upload_photographs
from dreambooth_ray.data.subject import read_subject
from dreambooth_ray.errors import DataError
from dreambooth_ray.storage.store import Store


def save(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def read_captions(folder: Path) -> list[str]:
    return [photograph.caption for photograph in read_subject(folder, "default", 16)]


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


@pytest.mark.parametrize(
    "data",
    [
        "a sks café".encode("utf-8-sig"),
        "a sks café".encode("utf-16"),
        b"\xfe\xff" + "a sks café".encode("utf-16-be"),
        "\ufeff\ufeffa\u00a0sks\r\n café\r\n".encode(),
    ],
)
def test_marks_of_byte_order_are_no_part_of_a_caption(data: bytes, tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    assert read_captions(tmp_path) == ["a sks café"]
    assert check_captions(find_photographs(tmp_path), "sks", "") == []


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


@pytest.mark.parametrize("name", ["b.txt", "b.caption", "metadata.jsonl", "captions.csv"])
def test_the_doctor_names_captions_that_nothing_uses(name: str, tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    (tmp_path / name).write_text("a sks robot")
    (issue,) = check_captions(find_photographs(tmp_path), "", "")
    assert issue.severity == "warning"
    assert name in issue.sentence


def test_captions_go_to_storage_with_their_photographs(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    save(folder, "a.png", "b.png")
    (folder / "a.caption").write_text("one")
    (folder / "B.TXT").write_text("two")
    uri = upload_photographs(folder, Store(str(tmp_path / "out")))
    assert read_captions(photographs_folder(f"file://{uri}")) == ["one", "two"]


def test_a_folder_of_kohyas_is_named_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "10_sks robot").mkdir()
    save(tmp_path / "10_sks robot", "a.png")
    with pytest.raises(
        DataError, match=r"the folder 10_sks robot/ with 1 photograph.*give the folder with"
    ):
        find_photographs(tmp_path)
