from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.data.caption_text import MAX_CAPTION_BYTES, read_caption
from dreambooth_ray.errors import DataError


def read(data: bytes, folder: Path) -> tuple[str, bool]:
    path = folder / "a.txt"
    path.write_bytes(data)
    caption = read_caption(path)
    return caption.text, caption.is_latin


@pytest.mark.parametrize(
    "data",
    [
        "a sks café".encode("utf-8-sig"),
        "a sks café".encode("utf-16"),
        b"\xfe\xff" + "a sks café".encode("utf-16-be"),
        "\ufeff\ufeffa\u00a0sks\r\n café\r\n".encode(),
        "a sks\rcafé\r".encode(),
    ],
)
def test_marks_of_byte_order_and_ends_of_lines_are_no_part_of_a_caption(
    data: bytes, tmp_path: Path
) -> None:
    assert read(data, tmp_path) == ("a sks café", False)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("un sks café à l\u2019ombre", "cp1252"),
        ("ein sks Kaffee für zwölf Gäste", "latin-1"),
        ("a sks dog, 20° \u2013 \u201csunny\u201d", "cp1252"),
    ],
)
def test_latin_text_is_read_and_told_apart(text: str, encoding: str, tmp_path: Path) -> None:
    assert read(text.encode(encoding), tmp_path) == (text, True)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("白い犬 sks", "shift-jis"), ("собака sks на траве", "cp1251"), ("sks 狗在草地上", "gbk")],
)
def test_other_alphabets_are_not_taken_for_latin_ones(
    text: str, encoding: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text; save it as UTF-8"):
        read(text.encode(encoding), tmp_path)


@pytest.mark.parametrize("data", [b"a\0b", b"\0" * 99, "ab".encode("utf-16-le"), b"a\x1bb\xe9"])
def test_what_holds_nul_or_control_characters_is_no_text(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt holds (NUL|U\+001B), which no text has"):
        read(data, tmp_path)


def test_a_caption_may_be_long_but_not_as_long_as_a_book(tmp_path: Path) -> None:
    assert read(b"x" * MAX_CAPTION_BYTES, tmp_path) == ("x" * MAX_CAPTION_BYTES, False)
    with pytest.raises(DataError, match="16,385 bytes, above 16,384; shorten or remove it"):
        read(b"x" * (MAX_CAPTION_BYTES + 1), tmp_path)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt can't be read .*Permission denied.*; mend or"):
        read_caption(tmp_path / "a.txt")


@given(data=st.binary(max_size=64))
def test_any_bytes_are_a_line_of_text_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        text, _ = read(data, tmp_path_factory.getbasetemp())
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert text == " ".join(text.split())
        assert "\0" not in text
