"""Who is to be learnt: photographs with captions, an identifier and a class noun."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth_ray.data.photographs import find_photographs, read_photograph, square
from dreambooth_ray.errors import DataError

# Words so common that every model has a strong meaning for them.
_ORDINARY = """
a an the my this that one two red blue green black white big small new old good nice dog cat toy
car man woman boy girl person people house tree flower robot fish bird horse bear duck boat ball
shoe sneaker backpack teapot cup bottle book chair table star photo picture thing object special
unique subject animal pet friend baby food cake love happy
"""
ORDINARY_WORDS = frozenset(_ORDINARY.split())


@dataclass(frozen=True)
class Photograph:
    """One training photograph, cut square."""

    path: Path
    picture: Image.Image
    caption: str


def read_subject(folder: Path, prompt: str, side_px: int) -> list[Photograph]:
    """All photographs of a folder, `side_px` square, each with its caption.

    A file `photo.txt` beside `photo.jpg` is its caption; `prompt` serves where there is none.
    raises: DataError naming the first file that can't be used
    """
    return [
        Photograph(path, square(read_photograph(path), side_px), _caption(path, prompt))
        for path in find_photographs(folder)
    ]


def _caption(path: Path, prompt: str) -> str:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return prompt
    try:
        caption = " ".join(beside.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{beside} is not UTF-8 text; save it as UTF-8 or remove it") from error
    return caption or prompt


def identifier_warning(identifier: str, class_noun: str) -> str | None:
    """Why an identifier is a poor choice, or None."""
    word = identifier.strip().lower()
    if word == class_noun.strip().lower():
        return (
            f"subject.identifier={identifier!r} is the class noun itself: the whole class would "
            "become the subject; take a rare word such as 'sks'"
        )
    if word in ORDINARY_WORDS:
        return (
            f"subject.identifier={identifier!r} is an ordinary word: the model has a meaning for "
            "it that will fight the subject, and loses that meaning; take a rare word such as 'sks'"
        )
    return None
