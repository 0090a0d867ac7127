"""Issues of the captions beside photographs."""

from pathlib import Path

from dreambooth_ray.data.caption_files import find_captions, find_unused_captions, read_caption
from dreambooth_ray.data.quality.issue import QualityIssue
from dreambooth_ray.errors import DataError

# CLIP's text encoder reads 75 tokens at once, a word being 1.3 of them on average.
MAX_WORDS = 55


def check_captions(paths: list[Path], identifier: str, class_noun: str) -> list[QualityIssue]:
    """Issues of the captions of a folder; none if no photograph has a caption.

    identifier, class_noun: words that each caption should hold; "" for none
    """
    caption_files = find_captions(paths)
    texts = {p: _read_text(caption_files.get(p)) for p in paths}
    issues = check_unused_captions(paths)
    if all(text is None for text in texts.values()):
        return issues
    uncaptioned = tuple(p.name for p, text in texts.items() if text is None)
    if uncaptioned:
        issues.append(
            QualityIssue("captions", "note", uncaptioned, len(uncaptioned), 0,
                    f"{len(uncaptioned)} of {len(paths)} "
                    "photographs have no caption while others do; they get the recipe's prompt.")
        )  # fmt: skip
    for path, text in texts.items():
        if text is not None:
            issues += _check_caption(path.name, text, [w for w in (identifier, class_noun) if w])
    return issues


def check_unused_captions(paths: list[Path]) -> list[QualityIssue]:
    """Files of captions in the photographs' folder that no photograph gets."""
    files = find_unused_captions(paths[0].parent, paths) if paths else []
    if not files:
        return []
    names = ", ".join(path.name for path in files[:5])
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    text = (
        f"Not used: {names}{more}. A caption is a file of its photograph's name that ends in "
        ".txt or .caption."
    )
    return [QualityIssue("captions", "warning", (), len(files), 0, text)]


def _read_text(path: Path | None) -> str | None:
    """A caption; of one that is no text, with marks where it can't be read."""
    if path is None:
        return None
    try:
        return read_caption(path)
    except DataError:
        return " ".join(path.read_text(encoding="utf-8", errors="replace").split())


def _check_caption(name: str, text: str, required_words: list[str]) -> list[QualityIssue]:
    words = text.lower().split()
    if not words:
        empty = f"The caption of {name} is empty; write one, or remove the file."
        return [QualityIssue("captions", "warning", (name,), 0, 1, empty)]
    issues = []
    if "\ufffd" in text:
        broken = f"The caption of {name} is not UTF-8 text; save it as UTF-8."
        issues.append(QualityIssue("captions", "fault", (name,), text.count("\ufffd"), 0, broken))
    if len(words) > MAX_WORDS:
        long = (
            f"The caption of {name} has {len(words)} words; beyond about {MAX_WORDS} the "
            "model reads it in parts, and a step takes longer."
        )
        issues.append(QualityIssue("captions", "note", (name,), len(words), MAX_WORDS, long))
    missing_words = [w for w in required_words if w.lower() not in text.lower()]
    if missing_words:
        lacks = (
            f"The caption of {name} does not hold {' and '.join(map(repr, missing_words))}; the "
            "subject is learnt under the words of its captions, so each should."
        )
        issues.append(QualityIssue("captions", "warning", (name,), len(missing_words), 0, lacks))
    return issues
