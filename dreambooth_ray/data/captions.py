"""Captions beside photographs: `photo.txt` for `photo.jpg`."""

from pathlib import Path

from dreambooth_ray.data.quality.issue import QualityIssue

# CLIP's text encoder reads 75 tokens, a word being 1.3 of them on average.
MAX_WORDS = 55


def caption_findings(paths: list[Path], identifier: str, class_noun: str) -> list[QualityIssue]:
    """What is odd about the captions; nothing if there are none at all.

    identifier, class_noun: words each caption should hold; "" if not known
    """
    texts = {p: _read(p.with_suffix(".txt")) for p in paths}
    if all(text is None for text in texts.values()):
        return []
    found = []
    bare = tuple(p.name for p, text in texts.items() if text is None)
    if bare:
        found.append(
            QualityIssue("captions", "note", bare, len(bare), 0, f"{len(bare)} of {len(paths)} "
                    "photographs have no caption while others do; they get the recipe's prompt.")
        )  # fmt: skip
    for path, text in texts.items():
        if text is not None:
            found += _of_one(path.name, text, [w for w in (identifier, class_noun) if w])
    return found


def _read(path: Path) -> str | None:
    if not path.is_file():
        return None
    return " ".join(path.read_text(encoding="utf-8", errors="replace").split())


def _of_one(name: str, text: str, wanted: list[str]) -> list[QualityIssue]:
    words = text.lower().split()
    if not words:
        empty = f"The caption of {name} is empty; write one, or remove the file."
        return [QualityIssue("captions", "warning", (name,), 0, 1, empty)]
    found = []
    if "\ufffd" in text:
        broken = f"The caption of {name} is not UTF-8 text; save it as UTF-8."
        found.append(QualityIssue("captions", "fault", (name,), text.count("\ufffd"), 0, broken))
    if len(words) > MAX_WORDS:
        long = f"The caption of {name} has {len(words)} words; the model reads about {MAX_WORDS}."
        found.append(QualityIssue("captions", "warning", (name,), len(words), MAX_WORDS, long))
    missing = [w for w in wanted if w.lower() not in text.lower()]
    if missing:
        lacks = (
            f"The caption of {name} does not hold {' and '.join(map(repr, missing))}; the subject "
            "is learnt under the words of its captions, so each should."
        )
        found.append(QualityIssue("captions", "warning", (name,), len(missing), 0, lacks))
    return found
