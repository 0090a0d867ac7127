"""Words in captions."""

import re


def caption_has_word(caption: str, word: str) -> bool:
    """Whether a word stands alone somewhere in a caption, in whatever case."""
    return re.search(_standalone_pattern(word), caption, flags=re.IGNORECASE) is not None


def insert_word_before_noun(caption: str, word: str, noun: str) -> str:
    """A caption with a word before the first place where a noun stands alone; as it is without."""
    pattern = re.compile(_standalone_pattern(noun), flags=re.IGNORECASE)
    return pattern.sub(lambda match: f"{word} {match.group()}", caption, count=1)


def remove_word(caption: str, word: str) -> str:
    """A caption with a word taken out wherever it stands alone, in whatever case.

    "a photo of a sks dog, in snow" is "a photo of a dog, in snow" without sks.
    """
    return close_gaps(re.sub(_standalone_pattern(word) + "-?", " ", caption, flags=re.IGNORECASE))


def close_gaps(caption: str) -> str:
    """A caption without the spaces and commas that stood around something taken out."""
    single_spaced_text = " ".join(caption.split())
    return re.sub(r"\s*([,.;:!?])(\s*,)*", r"\1", single_spaced_text).strip(" ,")


def _standalone_pattern(word: str) -> str:
    # Not \b: a learned word begins and ends with what is no letter.
    return rf"(?<!\w){re.escape(word)}(?!\w)"
