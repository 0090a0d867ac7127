"""Learned identifiers: new words of CLIP's tokenizers, with trained embeddings.

Each text encoder that can be trained learns its own embedding of a word.

Legend: K new words, D width of an embedding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.models.components import Components

# Words and their embeddings, by the name of the text encoder.
LearnedWords = Mapping[str, Mapping[str, Tensor]]
_ENCODER, _FILE = "text_encoder", "tokens{}.safetensors"


class LearnedTokens(nn.Module):
    """An embedding table and, behind it, new rows that alone are trained.

    rows: (K, D); their ids follow the table's last id
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows)

    def forward(self, ids: Tensor) -> Tensor:
        """(..., L) int64 to (..., L, D)."""
        base_vocabulary_size = self.table.num_embeddings
        base_embeddings: Tensor = self.table(ids.clamp(max=base_vocabulary_size - 1))
        learned_embeddings = self.rows[(ids - base_vocabulary_size).clamp(min=0)]
        return torch.where(
            (ids >= base_vocabulary_size)[..., None], learned_embeddings, base_embeddings
        )


def check_words(tokenizer: CLIPTokenizer, words: list[str]) -> None:
    """raises ConfigError if a word to be learnt is in the vocabulary already."""
    vocabulary = tokenizer.get_vocab()
    for word in words:
        if word in vocabulary:
            raise ConfigError(
                f"subject.identifier: {word} is a word of the model already, and "
                "identifier.kind=learned needs a new one; choose another, or kind rare_word"
            )


def add_trainable_words(parts: "Components", words: Mapping[str, str]) -> None:
    """Add trainable words, each initialised with the mean embedding of a text; in place.

    words: new word to its initial text
    """
    for tokenizer, encoder in _list_trainable_encoders(parts).values():
        table = encoder.get_input_embeddings()
        initial_embeddings = [
            _mean_text_embedding(tokenizer, table, text) for text in words.values()
        ]
        _add_to_tokenizer(tokenizer, table, list(words))
        encoder.set_input_embeddings(LearnedTokens(table, torch.stack(initial_embeddings)))


def _list_trainable_encoders(parts: "Components") -> dict[str, tuple[CLIPTokenizer, Any]]:
    """Those that learn words, each with its tokenizer, by name."""
    return {
        part.name: (parts.tokenizers[part.tokenizer], parts.text_encoders[part.name])
        for part in parts.family.trainable_text_encoders
    }


def _mean_text_embedding(tokenizer: CLIPTokenizer, table: nn.Embedding, text: str) -> Tensor:
    token_ids = tokenizer(text, add_special_tokens=False).input_ids
    return table.weight.detach()[token_ids].mean(dim=0)


def _add_to_tokenizer(tokenizer: CLIPTokenizer, table: nn.Embedding, words: list[str]) -> None:
    """Add words to the tokenizer: their ids follow the table's, in order."""
    check_words(tokenizer, words)
    if len(tokenizer) != table.num_embeddings:
        raise ConfigError(
            f"the model's tokenizer knows {len(tokenizer)} words and its text encoder "
            f"{table.num_embeddings}; identifier.kind=learned needs a model where they agree"
        )
    tokenizer.add_tokens(words)


def learned_embeddings(parts: "Components") -> LearnedWords:
    """Learned words with their embeddings, (D,) each; empty if there are none."""
    learned_words = {}
    for encoder_name, (tokenizer, encoder) in _list_trainable_encoders(parts).items():
        learned_tokens = encoder.get_input_embeddings()
        if isinstance(learned_tokens, LearnedTokens):
            base_vocabulary_size = learned_tokens.table.num_embeddings
            words = tokenizer.convert_ids_to_tokens(
                [base_vocabulary_size + k for k in range(len(learned_tokens.rows))]
            )
            learned_words[encoder_name] = dict(
                zip(words, learned_tokens.rows.detach(), strict=True)
            )
    return learned_words


def fold_embeddings(parts: "Components") -> None:
    """Make learned rows part of plain tables again, in place."""
    for _, encoder in _list_trainable_encoders(parts).values():
        learned_tokens = encoder.get_input_embeddings()
        if isinstance(learned_tokens, LearnedTokens):
            _extend_table(encoder, learned_tokens.table, learned_tokens.rows.detach())


def add_words(parts: "Components", learned_words: LearnedWords) -> None:
    """Add words with their embeddings, (D,) each, to a plain model, in place."""
    for encoder_name, (tokenizer, encoder) in _list_trainable_encoders(parts).items():
        if words := learned_words.get(encoder_name):
            table = encoder.get_input_embeddings()
            _add_to_tokenizer(tokenizer, table, list(words))
            _extend_table(encoder, table, torch.stack(list(words.values())).to(table.weight))


def _extend_table(encoder: CLIPTextModel, table: nn.Embedding, rows: Tensor) -> None:
    extended_weights = torch.cat([table.weight.detach(), rows])
    extended_table = nn.Embedding.from_pretrained(extended_weights, freeze=False)  # type: ignore[no-untyped-call]
    encoder.set_input_embeddings(extended_table)
    encoder.config.vocab_size = len(extended_weights)


def save_words(learned_words: LearnedWords, folder: Path) -> None:
    """Write words and embeddings, (1, D) each, to a file for each text encoder.

    One word is a textual inversion for diffusers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for encoder_name, words in learned_words.items():
        word_embeddings = {word: row[None].cpu().contiguous() for word, row in words.items()}
        save_file(word_embeddings, words_path(folder, encoder_name))


def words_path(folder: Path, encoder: str) -> Path:
    """Of a text encoder's words: tokens.safetensors, and tokens_2.safetensors of the second."""
    return folder / _FILE.format(encoder.removeprefix(_ENCODER))


def has_words(folder: Path) -> bool:
    """Whether there are files of `save_words`."""
    return any(folder.glob(_FILE.format("*")))


def read_learned_words(folder: Path) -> LearnedWords:
    """Words and embeddings from `save_words`, (D,) each, sorted by word; empty if none."""
    file_name_prefix, file_name_suffix = _FILE.split("{}")
    return {
        f"{_ENCODER}{path.name.removeprefix(file_name_prefix).removesuffix(file_name_suffix)}": {
            word: row[0] for word, row in sorted(load_file(path).items())
        }
        for path in sorted(folder.glob(_FILE.format("*")))
    }
