"""Captions of a folder that a model wrote: of which photograph, which model, to which prompt."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dreambooth_ray.errors import DataError
from dreambooth_ray.storage.local_files import replace_file

ANSWERS = "caption-answers.json"


@dataclass(frozen=True)
class GeneratedCaptionRecord:
    """One caption.

    photograph_sha256: of the file; caption_sha256: of the text, in UTF-8
    side_px: the longer side of the image that was sent was at most this
    """

    photograph_sha256: str
    caption_sha256: str
    api: str
    model: str
    prompt: str
    side_px: int


def hash_caption(text: str) -> str:
    """As `GeneratedCaptionRecord.caption_sha256`."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_generated_caption_records(folder: Path) -> dict[str, GeneratedCaptionRecord]:
    """The answers that a folder remembers, by the photograph's name; none where it has none.

    raises: DataError where the file is another than `write_generated_caption_records` writes
    """
    path = folder / ANSWERS
    try:
        answers_by_name = json.loads(path.read_bytes())
        return {str(name): GeneratedCaptionRecord(**row) for name, row in answers_by_name.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise DataError(
            f"{path} is not what `dreambooth caption` writes ({error}); remove it"
        ) from error


def write_generated_caption_records(
    folder: Path, answers: dict[str, GeneratedCaptionRecord]
) -> None:
    """Remember answers in place of those before."""
    answers_by_name = {name: asdict(answer) for name, answer in sorted(answers.items())}
    with replace_file(folder / ANSWERS) as partial_path:
        partial_path.write_text(json.dumps(answers_by_name, indent=1) + "\n", encoding="utf-8")
