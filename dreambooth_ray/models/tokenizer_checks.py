"""Whether a tokenizer is whole, and of the text encoder that it lies beside; by its files alone.

Libraries read a file that was cut off without a word, or say what no reader understands. Nothing
heavy is imported.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_values import find_bad_value
from dreambooth_ray.models.family import TextEncoderPart
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.sentence_pieces import count_pieces

_WHOLE, _VOCABULARY, _MERGES, _PIECES = "tokenizer.json", "vocab.json", "merges.txt", "spiece.model"
_ADDED = "added_tokens.json"
# What the second says goes before what the first does.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")


def check_tokenizer(directory: Path, part: TextEncoderPart) -> None:
    """Of a text encoder whose configuration can be read.

    raises: ConfigError naming the file or folder
    """
    folder = directory / part.tokenizer
    try:
        _check_vocabulary(directory, part)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder} is no tokenizer ({error!r}); copy it again") from error


def _check_vocabulary(directory: Path, part: TextEncoderPart) -> None:
    folder = directory / part.tokenizer
    config = read_json(directory / part.name / "config.json")
    # Of a network that sees images too, among the keys of its language model.
    num_rows = (config | (config.get("text_config") or {})).get("vocab_size")
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    if not part.tokenizer_class.startswith("CLIP"):  # others need not have each
        settings = {key: value for key, value in settings.items() if value is not None}
    token_ids: Collection[int]
    words = _read_vocabulary(folder, part.tokenizer_class)
    if words is None:
        token_ids = range(count_pieces(folder / _PIECES))
    else:
        token_ids = words.values()
        if problem := find_bad_value("tokenizer", settings) or _find_unknown_special_token(
            settings, words
        ):
            raise ConfigError(
                f"{folder}: {problem}; copy it again, or take a model that diffusers has written"
            )
    # What is no number, the encoder's own check tells of.
    if isinstance(num_rows, int) and max(token_ids, default=num_rows) >= num_rows:
        raise ConfigError(
            f"{folder} has {len(token_ids)} words, and {part.name}/ knows {num_rows}; the parts "
            "are of different models"
        )


def _read_vocabulary(folder: Path, class_name: str) -> dict[str, int] | None:
    """Each word's number; None of SentencePiece's own file, which holds the words in bytes."""
    words: dict[str, int] = {}
    if (folder / _WHOLE).is_file():
        tokenizer_json = read_json(folder / _WHOLE)
        vocabulary = (tokenizer_json.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # of words with their scores
            vocabulary = {word: number for number, (word, _) in enumerate(vocabulary)}
        words = dict(vocabulary)
        words |= {token["content"]: token["id"] for token in tokenizer_json.get("added_tokens", [])}
    elif (folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file():
        words = read_json(folder / _VOCABULARY)
        _check_merges(folder / _MERGES, words)
        if (folder / _ADDED).is_file():
            words |= read_json(folder / _ADDED)
    elif (folder / _PIECES).is_file() and class_name.startswith("T5"):
        return None
    else:
        other_files = _PIECES if class_name.startswith("T5") else f"{_VOCABULARY} and {_MERGES}"
        raise ConfigError(f"{folder} has neither {_WHOLE} nor {other_files}; copy it again")
    if not words or not all(type(number) is int for number in words.values()):
        raise ConfigError(f"{folder} numbers no words; copy it again")
    return words


def _find_unknown_special_token(settings: Mapping[str, Any], words: Mapping[str, int]) -> str:
    """In words; "" where there is none.

    A begin or an end that is no word would get a number that the text encoder has no row for.
    """
    added_tokens = settings.get("added_tokens_decoder") or {}
    known_tokens = words.keys() | {token["content"] for token in added_tokens.values()}
    for key in _SPECIAL_TOKENS:
        token = settings.get(key)
        token_text = token.get("content") if isinstance(token, dict) else token
        if token_text is not None and token_text not in known_tokens:
            return f"{key}={token_text!r} is no word of the tokenizer"
    return ""


def _check_merges(path: Path, words: Mapping[str, int]) -> None:
    """Each word longer than a letter is made by a merge, and each merge makes a word.

    A file that was cut off would be read without a word, and prompts split otherwise.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    first_merge_line = 1 if "#version:" in lines[0] else 0
    merged_words = {
        line.replace(" ", "").strip() for line in lines[first_merge_line:] if line.strip()
    }
    multi_letter_words = {w for w in words if len(w.removesuffix("</w>")) > 1 and w[0] != "<"}
    if differing_words := sorted(
        (multi_letter_words - merged_words) | (merged_words - words.keys())
    ):
        raise ConfigError(
            f"{path} and vocab.json differ in {len(differing_words)} words, {differing_words[0]!r} "
            "for one; copy both again"
        )
