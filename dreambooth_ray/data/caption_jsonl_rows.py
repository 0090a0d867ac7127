"""Captions of a whole folder in one file, a JSON object a line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from dreambooth_ray.data.caption_text import (
    MAX_CAPTION_BYTES,
    Caption,
    check_characters,
    decode_text,
    join_lines,
    read_bytes,
)
from dreambooth_ray.errors import DataError

# metadata.jsonl is the name of Hugging Face's image folders and of diffusers' scripts.
FOLDER_CAPTIONS = ("metadata.jsonl", "captions.jsonl")
# The first that a line has. `image_path` and `caption` are what kohya's musubi-tuner writes, `tags`
# what taggers do.
_NAME_KEYS = ("file_name", "image_path", "image")
_TEXT_KEYS = ("text", "caption", "prompt", "tags")
MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class CaptionRow:
    """A line. name: the photograph's, without its folder; line: its number, from 1"""

    name: str
    caption: Caption
    line: int


def read_caption_jsonl(path: Path) -> list[CaptionRow]:
    """All lines that name a photograph and say something of it.

    raises: DataError naming the line that can't be read
    """
    table_bytes = read_bytes(path, MAX_FILE_BYTES, "keep the lines of these photographs alone")
    table_text, is_latin = decode_text(table_bytes, path)
    return list(_parse_jsonl_rows(table_text, path, is_latin))


def _parse_jsonl_rows(text: str, path: Path, is_latin: bool) -> Iterator[CaptionRow]:
    # Not splitlines(): a caption may hold characters that it takes for the end of a line.
    for line_number, line in enumerate(text.replace("\ufeff", "").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, too
            raise DataError(f"{path}, line {line_number} is not JSON ({error}); mend it") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {line_number} is no object; write "
                '{"file_name": "a.jpg", "text": "..."}'
            )
        photograph_name = _get_first_present_value(row, _NAME_KEYS, path, line_number)
        caption_value = _get_first_present_value(row, _TEXT_KEYS, path, line_number)
        if isinstance(caption_value, list) and all(isinstance(tag, str) for tag in caption_value):
            caption_value = ", ".join(caption_value)
        if not isinstance(photograph_name, str) or not isinstance(caption_value, str | None):
            raise DataError(f"{path}, line {line_number}: file name and caption have to be text")
        caption = join_lines(caption_value or "")
        check_characters(photograph_name + caption, f"{path}, line {line_number}")
        if len(caption.encode()) > MAX_CAPTION_BYTES:
            raise DataError(
                f"{path}, line {line_number}: a caption has {MAX_CAPTION_BYTES:,} bytes at most; "
                "shorten it"
            )
        # Names of Windows too; it takes both kinds of slashes.
        yield CaptionRow(
            PureWindowsPath(photograph_name).name, Caption(caption, path, is_latin), line_number
        )


def _get_first_present_value(
    row: dict[str, Any], keys: tuple[str, ...], path: Path, line_number: int
) -> Any:
    for key in keys:
        if key in row:
            return row[key]
    raise DataError(
        f"{path}, line {line_number} has none of the keys {', '.join(keys)}, but "
        f"{', '.join(map(repr, row)) or 'none'}; name it so"
    )
