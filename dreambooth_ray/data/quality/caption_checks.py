"""Issues of the captions beside photographs."""

import re
from collections import Counter
from pathlib import Path

from dreambooth_ray.data.caption_files import CaptionFolder
from dreambooth_ray.data.caption_text import Caption
from dreambooth_ray.data.caption_words import caption_has_word
from dreambooth_ray.data.generated_caption_records import (
    hash_caption,
    read_generated_caption_records,
)
from dreambooth_ray.data.quality.caption_traits import find_caption_traits
from dreambooth_ray.data.quality.quality_issue import QualityIssue, Severity
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
    caption_folder = CaptionFolder(paths[0].parent)
    caption_issues, captions_by_name, uncaptioned_names = (
        _check_unused_caption_files(caption_folder, paths),
        {},
        [],
    )
    names_by_error: dict[str, list[str]] = {}
    for path in paths:
        try:
            caption = caption_folder.find_caption(path)
        except DataError as error:
            names_by_error.setdefault(str(error), []).append(path.name)
            continue
        if caption is None:
            uncaptioned_names.append(path.name)
        else:
            captions_by_name[path.name] = caption
    caption_issues += [
        _make_caption_issue("fault", tuple(names), f"{error_text}.")
        for error_text, names in names_by_error.items()
    ]
    if uncaptioned_names and len(uncaptioned_names) < len(paths):
        issue_sentence = (
            f"{len(uncaptioned_names)} of {len(paths)} photographs have no caption while others "
            "do; they get the recipe's prompt."
        )
        caption_issues.append(
            _make_caption_issue(
                "note", tuple(uncaptioned_names), issue_sentence, len(uncaptioned_names)
            )
        )
    for photograph_name, caption in captions_by_name.items():
        caption_issues += _check_caption(photograph_name, caption, identifier, class_noun)
    caption_issues += _check_captions_of_replaced_photographs(
        paths,
        {photograph_name: caption.text for photograph_name, caption in captions_by_name.items()},
    )
    texts_by_name = {
        n: c.text.replace("{class_noun}", class_noun) for n, c in captions_by_name.items()
    }
    return caption_issues + check_traits(texts_by_name, class_noun)


def check_traits(texts: dict[str, str], class_noun: str) -> list[QualityIssue]:
    """Captions that say again and again how the subject always looks. texts: by photograph"""
    traits_by_photograph = {
        name: find_caption_traits(text, class_noun) for name, text in texts.items() if text
    }
    if len(traits_by_photograph) < MIN_TRAIT_CAPTIONS or not class_noun:
        return []
    trait_counts = Counter(
        trait for caption_traits in traits_by_photograph.values() for trait in caption_traits
    )
    constant_traits = sorted(
        t
        for t, count in trait_counts.items()
        if count >= MIN_TRAIT_SHARE * len(traits_by_photograph)
    )
    if not constant_traits:
        return []
    photograph_names = tuple(
        name
        for name, photograph_traits in traits_by_photograph.items()
        if photograph_traits.intersection(constant_traits)
    )
    max_trait_share = max(trait_counts[trait] for trait in constant_traits) / len(
        traits_by_photograph
    )
    issue_sentence = (
        f"Of {len(traits_by_photograph)} captions {len(photograph_names)} call the subject "
        f"{' and '.join(constant_traits)}. What "
        "captions name is learnt by those words rather than by the identifier, so prompts would "
        "have to name it too. Leave out what is always so; name what differs: place, light, pose."
    )
    return [
        QualityIssue(
            "captions",
            "warning",
            photograph_names,
            round(max_trait_share, 2),
            MIN_TRAIT_SHARE,
            issue_sentence,
        )
    ]


def _check_unused_caption_files(
    caption_folder: CaptionFolder, paths: list[Path]
) -> list[QualityIssue]:
    """Files of captions in the photographs' folder that no photograph gets."""
    unused_files = caption_folder.find_unused_caption_files(paths)
    if not unused_files:
        return []
    more_text = f" and {len(unused_files) - 5} more" if len(unused_files) > 5 else ""
    issue_sentence = (
        f"Not used: {', '.join(unused_files[:5])}{more_text}. A caption is a file of its "
        "photograph's name that ends in .txt or .caption, or a line of metadata.jsonl."
    )
    return [_make_caption_issue("warning", (), issue_sentence, len(unused_files))]


def _check_captions_of_replaced_photographs(
    paths: list[Path], texts: dict[str, str]
) -> list[QualityIssue]:
    """Captions that a model wrote for what was another photograph then. texts: by photograph"""
    try:
        answers_by_name = read_generated_caption_records(paths[0].parent)
    except DataError as error:
        return [_make_caption_issue("warning", (), f"{error}.")]
    photograph_names = tuple(
        path.name
        for path in paths
        if (answer := answers_by_name.get(path.name)) is not None
        and hash_caption(texts.get(path.name, "")) == answer.caption_sha256
        and file_hash(path) != answer.photograph_sha256
    )
    if not photograph_names:
        return []
    name_list_text = ", ".join(photograph_names)
    issue_sentence = (
        f"The caption of {name_list_text} was written for another photograph of that name; "
        "caption it anew: remove the caption and run `dreambooth caption`."
    )
    return [_make_caption_issue("warning", photograph_names, issue_sentence, len(photograph_names))]


def _check_caption(
    name: str, caption: Caption, identifier: str, class_noun: str
) -> list[QualityIssue]:
    text, num_words = caption.text, len(caption.text.split())
    if not text:
        empty_caption_sentence = f"The caption of {name} is empty; write one, or remove the file."
        return [QualityIssue("captions", "warning", (name,), 0, 1, empty_caption_sentence)]
    caption_issues = []
    if caption.is_latin:
        encoding_sentence = (
            f"The caption of {name} is not UTF-8 and was read as Latin-1 (Windows-1252); save it "
            "as UTF-8, so that every program reads the same."
        )
        caption_issues.append(_make_caption_issue("note", (name,), encoding_sentence))
    if num_words > MAX_WORDS:
        length_sentence = (
            f"The caption of {name} has {num_words} words; beyond about {MAX_WORDS} the "
            "model reads it in parts, and a step takes longer."
        )
        caption_issues.append(
            QualityIssue("captions", "note", (name,), num_words, MAX_WORDS, length_sentence)
        )
    unknown_placeholders = sorted({m for m in _PLACEHOLDER.findall(text) if m not in _FILLED_IN})
    if unknown_placeholders:
        placeholder_sentence = (
            f"The caption of {name} holds {' and '.join(unknown_placeholders)}, which is taken as "
            f"it stands; only {' and '.join(_FILLED_IN)} are filled in."
        )
        caption_issues.append(
            _make_caption_issue("warning", (name,), placeholder_sentence, len(unknown_placeholders))
        )
    words_by_placeholder = {"{identifier}": identifier, "{class_noun}": class_noun}
    missing_words = [
        w
        for placeholder, w in words_by_placeholder.items()
        if w and not _holds_word(text, w, placeholder)
    ]
    if missing_words:
        missing_words_sentence = (
            f"The caption of {name} does not hold {' and '.join(map(repr, missing_words))}; the "
            "subject is learnt under the words of its captions, so each should."
        )
        caption_issues.append(
            _make_caption_issue("warning", (name,), missing_words_sentence, len(missing_words))
        )
    return caption_issues


def _holds_word(text: str, word: str, placeholder: str) -> bool:
    """Whether a word, or several of its kind, or the mark for it, stands in a caption."""
    return placeholder in text or any(
        caption_has_word(text, word + ending) for ending in ("", "s", "es")
    )


def _make_caption_issue(
    severity: Severity, names: tuple[str, ...], issue_sentence: str, value: float = 1
) -> QualityIssue:
    return QualityIssue("captions", severity, names, value, 0, issue_sentence)
