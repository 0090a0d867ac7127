"""Captions beside photographs: `photo.txt` for `photo.jpg`."""

from pathlib import Path

from dreambooth_ray.data.quality.issue import QualityIssue

# CLIP's text encoder reads 75 tokens at once, a word being 1.3 of them on average.
MAX_WORDS = 55


def check_captions(paths: list[Path], identifier: str, class_noun: str) -> list[QualityIssue]:
    """Issues of the captions of a folder; none if no photograph has a caption.

    identifier, class_noun: words that each caption should hold; "" for none
    """
    texts = {p: _read_caption(p.with_suffix(".txt")) for p in paths}
    if all(text is None for text in texts.values()):
        return []
    issues = []
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


def _read_caption(path: Path) -> str | None:
    if not path.is_file():
        return None
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
