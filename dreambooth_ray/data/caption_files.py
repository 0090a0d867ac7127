"""Which file is a photograph's caption, and what it says."""

import codecs
import unicodedata
from pathlib import Path

from dreambooth_ray.data.photographs import list_files
from dreambooth_ray.errors import DataError

# DreamBooth tools write the first, kohya's scripts the second unless told otherwise.
CAPTION_SUFFIXES = (".txt", ".caption")
# Captions of a whole folder in one file, of datasets and of kohya's scripts: these are not read.
_FOLDER_CAPTION_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


def find_captions(photographs: list[Path]) -> dict[Path, Path]:
    """The caption file of each photograph of a folder that has one.

    `photo.txt` or `photo.caption` for `photo.jpg`, also `photo.jpg.txt`; letters' case and how a
    file system composes accents do not matter where no name is just the same.

    raises: DataError where a photograph has two that say different things
    """
    files = _list_caption_files(photographs[0].parent) if photographs else []
    captions = {}
    for photograph in photographs:
        names = (photograph.stem, photograph.name)
        found_paths = [p for p in files if p.stem in names] or [
            p for p in files if _fold(p.stem) in map(_fold, names)
        ]
        if len(found_paths) > 1 and len({read_caption(p) for p in found_paths}) > 1:
            raise DataError(
                f"{photograph} has two captions that differ, {found_paths[0].name} and "
                f"{found_paths[1].name}; remove one"
            )
        if found_paths:
            captions[photograph] = found_paths[0]
    return captions


def find_unused_captions(folder: Path, photographs: list[Path]) -> list[Path]:
    """Caption files of a folder that belong to no photograph, and files of captions for all."""
    names = {
        _fold(name) for photograph in photographs for name in (photograph.stem, photograph.name)
    }
    loose = [path for path in _list_caption_files(folder) if _fold(path.stem) not in names]
    of_folder = [
        path
        for path in list_files(folder)
        if path.suffix.lower() in _FOLDER_CAPTION_SUFFIXES or path.name.startswith("meta_")
    ]
    return sorted({*loose, *of_folder})


def read_caption(path: Path) -> str:
    """A caption on one line; a byte order mark is no part of it.

    raises: DataError if it is not text in UTF-8, or in UTF-16 with its mark
    """
    data = path.read_bytes()
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8 or remove it") from error
    return " ".join(text.replace("\ufeff", "").split())


def _list_caption_files(folder: Path) -> list[Path]:
    return [path for path in list_files(folder) if path.suffix.lower() in CAPTION_SUFFIXES]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
