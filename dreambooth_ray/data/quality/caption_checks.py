"""Issues of the captions beside photographs."""

import re
from collections import Counter
from pathlib import Path

from dreambooth_ray.data.caption_answers import hash_caption, read_answers
from dreambooth_ray.data.caption_files import CaptionFolder
from dreambooth_ray.data.caption_text import Caption
from dreambooth_ray.data.caption_words import has_word
from dreambooth_ray.data.quality.issue import QualityIssue, Severity
from dreambooth_ray.data.quality.subject_traits import find_traits
from dreambooth_ray.errors import DataError
from dreambooth_ray.storage.manifest import file_hash

# CLIP's text encoder reads 75 tokens at once, a word being 1.3 of them on average.
MAX_WORDS = 55
# A trait that most captions name, not all: who writes them, and what, forgets it now and then.
MIN_TRAIT_SHARE, MIN_TRAIT_CAPTIONS = 0.75, 3
# What is filled in, and what other trainers fill in.
_FILLED_IN = ("{identifier}", "{class_noun}")
_PLACEHOLDER = re.compile(r"\{\w+\}|\[(?:trigger|name|filewords)\]|\|{3}")


def check_captions(paths: list[Path], identifier: str, class_noun: str) -> list[QualityIssue]:
    """Issues of the captions of a folder; none if no photograph has a caption.

    identifier, class_noun: words that each caption should hold; "" for none
    """
    if not paths:
        return []
    folder = CaptionFolder(paths[0].parent)
    issues, captions, uncaptioned_names = _check_unused(folder, paths), {}, []
    names_by_error: dict[str, list[str]] = {}
    for path in paths:
        try:
            caption = folder.find_caption(path)
        except DataError as error:
            names_by_error.setdefault(str(error), []).append(path.name)
            continue
        if caption is None:
            uncaptioned_names.append(path.name)
        else:
            captions[path.name] = caption
    issues += [
        _issue("fault", tuple(names), f"{error_text}.")
        for error_text, names in names_by_error.items()
    ]
    if uncaptioned_names and len(uncaptioned_names) < len(paths):
        sentence = (
            f"{len(uncaptioned_names)} of {len(paths)} photographs have no caption while others "
            "do; they get the recipe's prompt."
        )
        issues.append(_issue("note", tuple(uncaptioned_names), sentence, len(uncaptioned_names)))
    for name, caption in captions.items():
        issues += _check_caption(name, caption, identifier, class_noun)
    issues += _check_stale_answers(
        paths, {name: caption.text for name, caption in captions.items()}
    )
    texts = {n: c.text.replace("{class_noun}", class_noun) for n, c in captions.items()}
    return issues + check_traits(texts, class_noun)


def check_traits(texts: dict[str, str], class_noun: str) -> list[QualityIssue]:
    """Captions that say again and again how the subject always looks. texts: by photograph"""
    traits_by_name = {name: find_traits(text, class_noun) for name, text in texts.items() if text}
    if len(traits_by_name) < MIN_TRAIT_CAPTIONS or not class_noun:
        return []
    trait_counts = Counter(
        trait for caption_traits in traits_by_name.values() for trait in caption_traits
    )
    constant_traits = sorted(
        t for t, count in trait_counts.items() if count >= MIN_TRAIT_SHARE * len(traits_by_name)
    )
    if not constant_traits:
        return []
    names = tuple(
        name
        for name, photograph_traits in traits_by_name.items()
        if photograph_traits.intersection(constant_traits)
    )
    max_trait_share = max(trait_counts[trait] for trait in constant_traits) / len(traits_by_name)
    sentence = (
        f"Of {len(traits_by_name)} captions {len(names)} call the subject "
        f"{' and '.join(constant_traits)}. What "
        "captions name is learnt by those words rather than by the identifier, so prompts would "
        "have to name it too. Leave out what is always so; name what differs: place, light, pose."
    )
    return [
        QualityIssue(
            "captions", "warning", names, round(max_trait_share, 2), MIN_TRAIT_SHARE, sentence
        )
    ]


def _check_unused(folder: CaptionFolder, paths: list[Path]) -> list[QualityIssue]:
    """Files of captions in the photographs' folder that no photograph gets."""
    unused_files = folder.find_unused(paths)
    if not unused_files:
        return []
    more_text = f" and {len(unused_files) - 5} more" if len(unused_files) > 5 else ""
    sentence = (
        f"Not used: {', '.join(unused_files[:5])}{more_text}. A caption is a file of its "
        "photograph's name that ends in .txt or .caption, or a line of metadata.jsonl."
    )
    return [_issue("warning", (), sentence, len(unused_files))]


def _check_stale_answers(paths: list[Path], texts: dict[str, str]) -> list[QualityIssue]:
    """Captions that a model wrote for what was another photograph then. texts: by photograph"""
    try:
        answers = read_answers(paths[0].parent)
    except DataError as error:
        return [_issue("warning", (), f"{error}.")]
    names = tuple(
        path.name
        for path in paths
        if (answer := answers.get(path.name)) is not None
        and hash_caption(texts.get(path.name, "")) == answer.caption_sha256
        and file_hash(path) != answer.photograph_sha256
    )
    if not names:
        return []
    name_list_text = ", ".join(names)
    sentence = (
        f"The caption of {name_list_text} was written for another photograph of that name; "
        "caption it anew: remove the caption and run `dreambooth caption`."
    )
    return [_issue("warning", names, sentence, len(names))]


def _check_caption(
    name: str, caption: Caption, identifier: str, class_noun: str
) -> list[QualityIssue]:
    text, num_words = caption.text, len(caption.text.split())
    if not text:
        empty_text = f"The caption of {name} is empty; write one, or remove the file."
        return [QualityIssue("captions", "warning", (name,), 0, 1, empty_text)]
    issues = []
    if caption.is_latin:
        encoding_text = (
            f"The caption of {name} is not UTF-8 and was read as Latin-1 (Windows-1252); save it "
            "as UTF-8, so that every program reads the same."
        )
        issues.append(_issue("note", (name,), encoding_text))
    if num_words > MAX_WORDS:
        length_text = (
            f"The caption of {name} has {num_words} words; beyond about {MAX_WORDS} the "
            "model reads it in parts, and a step takes longer."
        )
        issues.append(QualityIssue("captions", "note", (name,), num_words, MAX_WORDS, length_text))
    unknown_placeholders = sorted({m for m in _PLACEHOLDER.findall(text) if m not in _FILLED_IN})
    if unknown_placeholders:
        placeholder_text = (
            f"The caption of {name} holds {' and '.join(unknown_placeholders)}, which is taken as "
            f"it stands; only {' and '.join(_FILLED_IN)} are filled in."
        )
        issues.append(_issue("warning", (name,), placeholder_text, len(unknown_placeholders)))
    words_by_placeholder = {"{identifier}": identifier, "{class_noun}": class_noun}
    missing_words = [
        w
        for placeholder, w in words_by_placeholder.items()
        if w and not _holds_word(text, w, placeholder)
    ]
    if missing_words:
        missing_words_text = (
            f"The caption of {name} does not hold {' and '.join(map(repr, missing_words))}; the "
            "subject is learnt under the words of its captions, so each should."
        )
        issues.append(_issue("warning", (name,), missing_words_text, len(missing_words)))
    return issues


def _holds_word(text: str, word: str, placeholder: str) -> bool:
    """Whether a word, or several of its kind, or the mark for it, stands in a caption."""
    return placeholder in text or any(has_word(text, word + ending) for ending in ("", "s", "es"))


def _issue(
    severity: Severity, names: tuple[str, ...], sentence: str, value: float = 1
) -> QualityIssue:
    return QualityIssue("captions", severity, names, value, 0, sentence)
