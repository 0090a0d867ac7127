"""Whether a tokenizer is whole, and of the text encoder that it lies beside; by its files alone.

Libraries read a file that was cut off without a word, or say what no reader understands. Nothing
heavy is imported.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_value_checks import find_bad_value
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
    num_embedding_rows = (config | (config.get("text_config") or {})).get("vocab_size")
    tokenizer_settings: dict[str, Any] = {}
    for settings_file in _SETTINGS:
        if (folder / settings_file).is_file():
            tokenizer_settings |= read_json(folder / settings_file)
    if not part.tokenizer_class.startswith("CLIP"):  # others need not have each
        tokenizer_settings = {
            key: value for key, value in tokenizer_settings.items() if value is not None
        }
    vocabulary_ids: Collection[int]
    id_by_word = _read_vocabulary(folder, part.tokenizer_class)
    if id_by_word is None:
        vocabulary_ids = range(count_pieces(folder / _PIECES))
    else:
        vocabulary_ids = id_by_word.values()
        if problem := find_bad_value(
            "tokenizer", tokenizer_settings
        ) or _find_unknown_special_token(tokenizer_settings, id_by_word):
            raise ConfigError(
                f"{folder}: {problem}; copy it again, or take a model that diffusers has written"
            )
    # What is no number, the encoder's own check tells of.
    if (
        isinstance(num_embedding_rows, int)
        and max(vocabulary_ids, default=num_embedding_rows) >= num_embedding_rows
    ):
        raise ConfigError(
            f"{folder} has {len(vocabulary_ids)} words, and {part.name}/ knows "
            f"{num_embedding_rows}; the parts are of different models"
        )


def _read_vocabulary(folder: Path, class_name: str) -> dict[str, int] | None:
    """Each word's number; None of SentencePiece's own file, which holds the words in bytes."""
    id_by_word: dict[str, int] = {}
    if (folder / _WHOLE).is_file():
        tokenizer_json = read_json(folder / _WHOLE)
        vocabulary = (tokenizer_json.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # of words with their scores
            vocabulary = {word: word_id for word_id, (word, _) in enumerate(vocabulary)}
        id_by_word = dict(vocabulary)
        id_by_word |= {
            token["content"]: token["id"] for token in tokenizer_json.get("added_tokens", [])
        }
    elif (folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file():
        id_by_word = read_json(folder / _VOCABULARY)
        _check_merges(folder / _MERGES, id_by_word)
        if (folder / _ADDED).is_file():
            id_by_word |= read_json(folder / _ADDED)
    elif (folder / _PIECES).is_file() and class_name.startswith("T5"):
        return None
    else:
        expected_files = _PIECES if class_name.startswith("T5") else f"{_VOCABULARY} and {_MERGES}"
        raise ConfigError(f"{folder} has neither {_WHOLE} nor {expected_files}; copy it again")
    if not id_by_word or not all(type(word_id) is int for word_id in id_by_word.values()):
        raise ConfigError(f"{folder} numbers no words; copy it again")
    return id_by_word


def _find_unknown_special_token(
    tokenizer_settings: Mapping[str, Any], id_by_word: Mapping[str, int]
) -> str:
    """In words; "" where there is none.

    A begin or an end that is no word would get a number that the text encoder has no row for.
    """
    added_tokens = tokenizer_settings.get("added_tokens_decoder") or {}
    known_tokens = id_by_word.keys() | {token["content"] for token in added_tokens.values()}
    for setting_key in _SPECIAL_TOKENS:
        token = tokenizer_settings.get(setting_key)
        token_text = token.get("content") if isinstance(token, dict) else token
        if token_text is not None and token_text not in known_tokens:
            return f"{setting_key}={token_text!r} is no word of the tokenizer"
    return ""


def _check_merges(path: Path, words: Mapping[str, int]) -> None:
    """Each word longer than a letter is made by a merge, and each merge makes a word.

    A file that was cut off would be read without a word, and prompts split otherwise.
    """
    merge_file_lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    first_merge_index = 1 if "#version:" in merge_file_lines[0] else 0
    merged_words = {
        line.replace(" ", "").strip()
        for line in merge_file_lines[first_merge_index:]
        if line.strip()
    }
    multi_letter_words = {w for w in words if len(w.removesuffix("</w>")) > 1 and w[0] != "<"}
    if unmatched_words := sorted(
        (multi_letter_words - merged_words) | (merged_words - words.keys())
    ):
        raise ConfigError(
            f"{path} and vocab.json differ in {len(unmatched_words)} words, {unmatched_words[0]!r} "
            "for one; copy both again"
        )
