from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.data.quality.caption_checks import check_captions
from dreambooth_ray.data.quality.quality_issue import QualityIssue


def check(folder: Path, *captions: str | bytes | None) -> list[QualityIssue]:
    """Issues of photographs a.png, b.png, ... with these captions, of a robot called sks."""
    for letter, caption in zip("abcdefgh", captions, strict=False):
        Image.new("RGB", (16, 16)).save(folder / f"{letter}.png")
        if caption is not None:
            data = caption if isinstance(caption, bytes) else caption.encode()
            (folder / f"{letter}.txt").write_bytes(data)
    return check_captions(find_photographs(folder), "sks", "robot")


@pytest.mark.parametrize(
    "caption",
    [
        "a sks robot",
        "a {identifier} {class_noun}",
        "A SKS Robot, at sea",
        "two sks robots",
        "a <sks> robot",
        "sks,robot",
    ],
)
def test_a_caption_with_both_words_is_left_alone(caption: str, tmp_path: Path) -> None:
    assert check(tmp_path, caption) == []


@pytest.mark.parametrize(
    ("caption", "severity", "match"),
    [
        ("a robot", "warning", "does not hold 'sks'"),
        ("sks", "warning", "does not hold 'robot'"),
        ("a sksx microrobot", "warning", "does not hold 'sks' and 'robot'"),
        ("", "warning", "The caption of a.png is empty"),
        ("sks robot " * 40, "note", "has 80 words"),
        ("[trigger] sks robot {name}", "warning", "holds [trigger] and {name}, which is taken as"),
        ("sks robot ||| snow", "warning", "holds |||, which is taken as it stands"),
        ("un sks robot \xe9lectrique".encode("latin-1"), "note", "was read as Latin-1"),
        ("白い sks robot 犬白い犬白い犬".encode("shift-jis"), "fault", "a.txt is not UTF-8 text"),
        (b"\0" * 30, "fault", "a.txt holds NUL, which no text has"),
        (b"x" * 1_000_000, "fault", "a.txt has 1,000,000 bytes"),
    ],
)
def test_what_is_wrong_with_a_caption_is_said(
    caption: str | bytes, severity: str, match: str, tmp_path: Path
) -> None:
    (issue,) = check(tmp_path, caption)
    assert (issue.check, issue.severity, issue.photographs) == ("captions", severity, ("a.png",))
    assert match in issue.sentence


def test_photographs_without_a_caption_beside_others_are_named(tmp_path: Path) -> None:
    (issue,) = check(tmp_path, "a sks robot", None, None)
    assert (issue.severity, issue.photographs) == ("note", ("b.png", "c.png"))
    assert "2 of 3 photographs have no caption" in issue.sentence


def test_a_table_that_can_not_be_read_is_one_issue(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("a.png: a sks robot")
    (issue,) = check(tmp_path, None, None)
    assert (issue.severity, issue.photographs) == ("fault", ("a.png", "b.png"))
    assert "metadata.jsonl, line 1 is not JSON" in issue.sentence


@pytest.mark.parametrize(
    "name", ["x.txt", "x.caption", "other.jsonl", "captions.csv", "meta_cap.json"]
)
def test_captions_that_nothing_uses_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a sks robot")
    (issue,) = check(tmp_path, None)
    assert issue.severity == "warning"
    assert f"Not used: {name}." in issue.sentence


def test_traits_that_most_captions_name_are_told(tmp_path: Path) -> None:
    captions = (
        "a red sks robot in snow",
        "a sks robot, red, striped, at night",
        "a red striped sks robot on grass",
        "a sks robot in a red room",
    )
    (issue,) = check(tmp_path, *captions)
    assert (issue.severity, issue.value, issue.bound) == ("warning", 0.75, 0.75)
    assert issue.photographs == ("a.png", "b.png", "c.png")
    assert "Of 4 captions 3 call the subject red. What" in issue.sentence


@pytest.mark.parametrize(
    "captions",
    [
        ("a red sks robot in snow", "a red sks robot at night"),
        ("a sks robot on green grass",) * 4,
        ("a red sks robot", "a blue sks robot", "a green sks robot"),
        ("a red sks robot", "a red sks robot", "a sks robot", "a sks robot"),
    ],
    ids=["two", "places", "differing", "half"],
)
def test_what_differs_or_is_about_the_place_is_no_fixed_trait(
    captions: tuple[str, ...], tmp_path: Path
) -> None:
    assert check(tmp_path, *captions) == []
