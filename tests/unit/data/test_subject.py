from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.data.image_shapes import ShapeRule
from dreambooth_ray.data.subject import (
    check_identifier_use,
    identifier_warning,
    read_photographs_for_subject_config,
    read_subject_photographs,
)
from dreambooth_ray.errors import DataError


def test_captions_beside_photographs_are_used(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("  a sks dog\n at sea ")
    (tmp_path / "c.txt").write_text("\n")
    read = read_subject_photographs(tmp_path, "a sks dog", ShapeRule.make_square_rule(16))
    assert [p.caption for p in read] == ["a sks dog", "a sks dog at sea", "a sks dog"]
    assert {p.image.size for p in read} == {(16, 16)}


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        read_subject_photographs(tmp_path, "x", ShapeRule.make_square_rule(16))


@pytest.mark.parametrize(
    ("identifier", "word"),
    [("dog", "class noun itself"), ("Red", "ordinary word"), ("picture", "ordinary word")],
)
def test_an_ordinary_identifier_is_warned_of_with_the_reason(identifier: str, word: str) -> None:
    assert word in str(identifier_warning(identifier, "dog"))


def test_a_rare_identifier_passes() -> None:
    assert identifier_warning("sks", "dog") is None


@pytest.mark.parametrize(
    ("overrides", "texts", "doubts"),
    [
        ((), {}, []),
        (("captions.tag_dropout=1",), {"a": "snow, a SKS dog, night"}, []),
        ((), {"a": "a dog at sea"}, ["1 caption of 2 without the identifier 'sks', a.png for one"]),
        (
            ("train.prompt=a dog",),
            {},
            ["2 captions of 2 without the identifier 'sks', a.png for o"],
        ),
        (("identifier.kind=learned",), {"b": "a sks dog"}, ["1 caption of 2 without the identifi"]),
        (("identifier.kind=learned",), {"a": "a {identifier} dog", "b": "a <sks> dog"}, []),
    ],
)
def test_captions_without_the_identifier_are_named(
    overrides: tuple[str, ...], texts: dict[str, str], doubts: list[str], tmp_path: Path
) -> None:
    for name in "ab":
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    config = parse_config(
        f"subject: {{photos: {tmp_path}, class_noun: dog}}",
        "x",
        ["train.resolution=16", *overrides],
    )
    found = check_identifier_use(
        config, config.subject, read_photographs_for_subject_config(config, config.subject)
    )
    assert [text.startswith(start) for text, start in zip(found, doubts, strict=True)] == [
        True
    ] * len(doubts)


def test_a_word_that_no_caption_has_can_not_be_learnt(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a sks dog")
    config = parse_config(
        f"subject: {{photos: {tmp_path}, class_noun: dog}}",
        "x",
        ["train.resolution=16", "identifier.kind=learned"],
    )
    photographs = read_photographs_for_subject_config(config, config.subject)
    with pytest.raises(DataError, match=r"no caption .* has the word <sks> \(a\.png for one"):
        check_identifier_use(config, config.subject, photographs)
