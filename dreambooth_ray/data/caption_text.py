"""Captions from bytes: text on one line, whatever an editor saved it as."""

import codecs
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.errors import DataError

# Some 2,500 words. What is longer is no caption, and would fill dozens of a text encoder's windows.
MAX_CAPTION_BYTES = 16_384
# Of all characters. Other alphabets, read as Latin-1, come out as letters beyond ASCII throughout.
_MAX_LATIN_SHARE = 0.25


@dataclass(frozen=True)
class Caption:
    """What is said of a photograph.

    text: on one line, "" where the file says nothing; path: the file it is from
    is_latin: whether it was read as Windows-1252, which Latin-1 is a part of, for want of UTF-8
    """

    text: str
    path: Path
    is_latin: bool = False


def read_caption(path: Path) -> Caption:
    """The whole text of a file.

    raises: DataError if it is too long, or no text
    """
    caption_bytes = read_bytes(path, MAX_CAPTION_BYTES, "shorten or remove it")
    text, is_latin = decode_text(caption_bytes, path)
    return Caption(join_lines(text), path, is_latin)


def read_bytes(path: Path, max_bytes: int, remedy: str) -> bytes:
    """A whole file; remedy: what to do where it has more than `max_bytes`

    raises: DataError for that, or if it can't be read
    """
    try:
        num_file_bytes = path.stat().st_size
        if num_file_bytes > max_bytes:
            raise DataError(f"{path} has {num_file_bytes:,} bytes, above {max_bytes:,}; {remedy}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error}); mend or remove it") from error


def join_lines(text: str) -> str:
    """On one line, with single spaces; a byte order mark is no part of it."""
    return " ".join(text.replace("\ufeff", "").split())


def decode_text(data: bytes, path: Path) -> tuple[str, bool]:
    """Text of a file, and whether it was read as Windows-1252.

    UTF-8; UTF-16 with its byte order mark; else Windows-1252, where that makes a European language.

    raises: DataError if it is none of them, or as `check_characters`
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    is_latin = False
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        latin_text = None if is_utf16 else _decode_latin(data)
        if latin_text is None:
            raise DataError(f"{path} is not UTF-8 text; save it as UTF-8 or remove it") from error
        text, is_latin = latin_text, True
    check_characters(text, str(path))
    return text, is_latin


def check_characters(text: str, where: str) -> None:
    """raises: DataError if it holds NUL and other characters that are no text

    where: what to name
    """
    character = next((c for c in text if _is_control(c)), None)
    if character is not None:
        character_name = "NUL" if character == "\0" else f"U+{ord(character):04X}"
        raise DataError(
            f"{where} holds {character_name}, which no text has; write it anew or remove it"
        )


def _decode_latin(data: bytes) -> str | None:
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    num_non_ascii = sum(not character.isascii() for character in text)
    return text if num_non_ascii <= _MAX_LATIN_SHARE * len(text) else None


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and not character.isspace()
