"""Which file says what of which photograph."""

import unicodedata
from pathlib import Path

from dreambooth_ray.data.caption_jsonl_rows import FOLDER_CAPTIONS, CaptionRow, read_caption_jsonl
from dreambooth_ray.data.caption_text import Caption, read_caption
from dreambooth_ray.data.photographs import list_files
from dreambooth_ray.errors import DataError

# DreamBooth tools write the first, kohya's scripts the second unless told otherwise.
CAPTION_SUFFIXES = (".txt", ".caption")
# Tables of captions in formats, or under names, that are not read.
_TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


class CaptionFolder:
    """The captions of a folder of photographs."""

    def __init__(self, folder: Path) -> None:
        files = list_files(folder)
        self.files = [path for path in files if path.suffix.lower() in CAPTION_SUFFIXES]
        self.tables = [path for path in files if path.name.lower() in FOLDER_CAPTIONS]
        self._rows: dict[str, list[CaptionRow]] | None = None

    def find_photograph_caption_files(self, photograph: Path) -> list[Path]:
        """The caption files of a photograph alone.

        `photo.txt` or `photo.caption` for `photo.jpg`, also `photo.jpg.txt`; letters' case and how
        a file system composes accents do not matter where no name is just the same.
        """
        stem_and_name = (photograph.stem, photograph.name)
        return [path for path in self.files if path.stem in stem_and_name] or [
            path for path in self.files if _fold(path.stem) in map(_fold, stem_and_name)
        ]

    def find_caption(self, photograph: Path) -> Caption | None:
        """What is said of a photograph; None where nothing is.

        raises: DataError where it is no text, or where two captions say different things
        """
        captions_with_source = [
            (path.name, read_caption(path))
            for path in self.find_photograph_caption_files(photograph)
        ]
        captions_with_source += [
            (f"{row.caption.path.name} line {row.line}", row.caption)
            for row in self._find_rows(photograph)
        ]
        differing_sources = [
            name
            for name, caption in captions_with_source
            if caption.text != captions_with_source[0][1].text
        ]
        if differing_sources:
            raise DataError(
                f"{photograph} has two captions that differ, {captions_with_source[0][0]} and "
                f"{differing_sources[0]}; remove one"
            )
        return captions_with_source[0][1] if captions_with_source else None

    def is_in_table(self, photograph: Path) -> bool:
        """Whether a line of a file for the whole folder is about a photograph."""
        return bool(self._find_rows(photograph))

    def find_unused_caption_files(self, photographs: list[Path]) -> list[str]:
        """Caption files that belong to no photograph, and tables of captions that are not read."""
        photograph_names = {_fold(name) for path in photographs for name in (path.stem, path.name)}
        orphan_captions = [
            path.name for path in self.files if _fold(path.stem) not in photograph_names
        ]
        folder = photographs[0].parent
        unread_tables = [
            path.name
            for path in list_files(folder)
            if (path.suffix.lower() in _TABLE_SUFFIXES or path.name.startswith("meta_"))
            and path not in self.tables
        ]
        return sorted({*orphan_captions, *unread_tables})

    def _find_rows(self, photograph: Path) -> list[CaptionRow]:
        if self._rows is None:
            rows_by_name: dict[str, list[CaptionRow]] = {}
            for path in self.tables:
                for row in read_caption_jsonl(path):
                    rows_by_name.setdefault(_fold(row.name), []).append(row)
            self._rows = rows_by_name
        name_and_stem = list(dict.fromkeys((photograph.name, photograph.stem)))
        found_rows = [row for name in name_and_stem for row in self._rows.get(_fold(name), [])]
        return [row for row in found_rows if row.name in name_and_stem] or found_rows


def find_captions(photographs: list[Path]) -> dict[Path, Caption]:
    """The caption of each photograph of a folder that has one.

    raises: DataError where one can't be read, or two differ
    """
    if not photographs:
        return {}
    caption_folder = CaptionFolder(photographs[0].parent)
    paths_with_caption = ((path, caption_folder.find_caption(path)) for path in photographs)
    return {path: caption for path, caption in paths_with_caption if caption is not None}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
