from pathlib import Path

import pytest

from dreambooth_ray.data import caption_jsonl_rows
from dreambooth_ray.data.caption_jsonl_rows import read_caption_jsonl
from dreambooth_ray.errors import DataError


def read(text: str | bytes, folder: Path) -> list[tuple[str, str]]:
    path = folder / "metadata.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(row.name, row.caption.text) for row in read_caption_jsonl(path)]


@pytest.mark.parametrize(
    "line",
    [
        '{"file_name": "a.jpg", "text": "a sks dog"}',
        '{"file_name": "train/a.jpg", "text": "a sks\\n dog ", "width": 5}',
        '{"image_path": "C:\\\\photos\\\\a.jpg", "caption": "a sks dog"}',
        '{"image": "a.jpg", "prompt": "a sks dog"}',
        '\ufeff{"file_name": "a.jpg", "text": "a sks dog"}\r\n\r\n',
    ],
)
def test_lines_of_every_common_tool_are_read(line: str, tmp_path: Path) -> None:
    assert read(line, tmp_path) == [("a.jpg", "a sks dog")]


def test_tags_may_be_a_list_and_nothing_may_be_said(tmp_path: Path) -> None:
    lines = (
        '{"image": "a.jpg", "tags": ["sks dog", "snow"]}\n{"file_name": "b.jpg", "text": null}\n'
    )
    assert read(lines, tmp_path) == [("a.jpg", "sks dog, snow"), ("b.jpg", "")]


def test_a_line_of_latin_text_is_read(tmp_path: Path) -> None:
    line = '{"file_name": "café.jpg", "text": "a sks café"}'
    assert read(line.encode("latin-1"), tmp_path) == [("café.jpg", "a sks café")]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("a sks dog", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        (f'{{"size": {"1" * 5000}}}', "line 2 is not JSON"),
        ('["a.jpg"]', "line 2 is no object; write"),
        ('{"text": "x"}', "line 2 has none of the keys file_name, image_path, image, but 'text'"),
        ('{"file_name": "a.jpg"}', "line 2 has none of the keys text, caption, prompt, tags"),
        ('{"file_name": 7, "text": "x"}', "line 2: file name and caption have to be text"),
        ('{"file_name": "a.jpg", "text": 7}', "line 2: file name and caption have to be text"),
        ('{"file_name": "a.jpg", "text": "a\\u0000b"}', "line 2 holds NUL, which no text has"),
        ('{"file_name": "a.jpg", "text": "\\ud800"}', r"line 2 holds U\+D800, which no text has"),
        (f'{{"file_name": "a.jpg", "text": "{"x" * 16_385}"}}', "line 2: a caption has 16,384"),
    ],
)  # fmt: skip
def test_a_line_that_can_not_be_read_is_named(line: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=match):
        read(f'{{"file_name": "b.jpg", "text": "x"}}\n{line}\n', tmp_path)


def test_a_file_of_another_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_jsonl_rows, "MAX_FILE_BYTES", 10)
    with pytest.raises(DataError, match="has 11 bytes, above 10; keep the lines of these"):
        read("x" * 11, tmp_path)
