"""Learned identifiers: new words of the tokenizer, with trained embeddings.

Legend: K new words, D width of an embedding.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_ray.errors import ConfigError

FILE = "tokens.safetensors"


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
        size = self.table.num_embeddings
        base_embeddings: Tensor = self.table(ids.clamp(max=size - 1))
        learned_embeddings = self.rows[(ids - size).clamp(min=0)]
        return torch.where((ids >= size)[..., None], learned_embeddings, base_embeddings)


def check_words(tokenizer: CLIPTokenizer, words: list[str]) -> None:
    """raises ConfigError if a word to be learnt is in the vocabulary already."""
    vocabulary = tokenizer.get_vocab()
    for word in words:
        if word in vocabulary:
            raise ConfigError(
                f"subject.identifier: {word} is a word of the model already, and "
                "identifier.kind=learned needs a new one; choose another, or kind rare_word"
            )


def add_trainable_words(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, words: Mapping[str, str]
) -> None:
    """Add trainable words, each initialised with the mean embedding of a text; in place.

    words: new word to its initial text
    """
    table = encoder.get_input_embeddings()
    rows = [_mean_embedding(tokenizer, table, text) for text in words.values()]
    _add_to_tokenizer(tokenizer, table, list(words))
    encoder.set_input_embeddings(LearnedTokens(table, torch.stack(rows)))


def _mean_embedding(tokenizer: CLIPTokenizer, table: nn.Embedding, text: str) -> Tensor:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return table.weight.detach()[ids].mean(dim=0)


def _add_to_tokenizer(tokenizer: CLIPTokenizer, table: nn.Embedding, words: list[str]) -> None:
    """Add words to the tokenizer: their ids follow the table's, in order."""
    check_words(tokenizer, words)
    if len(tokenizer) != table.num_embeddings:
        raise ConfigError(
            f"the model's tokenizer knows {len(tokenizer)} words and its text encoder "
            f"{table.num_embeddings}; identifier.kind=learned needs a model where they agree"
        )
    tokenizer.add_tokens(words)


def learned_embeddings(tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> dict[str, Tensor]:
    """Learned words with their embeddings, (D,) each; empty if there are none."""
    learned = encoder.get_input_embeddings()
    if not isinstance(learned, LearnedTokens):
        return {}
    size = learned.table.num_embeddings
    words = tokenizer.convert_ids_to_tokens([size + k for k in range(len(learned.rows))])
    return dict(zip(words, learned.rows.detach(), strict=True))


def fold_embeddings(encoder: CLIPTextModel) -> None:
    """Make learned rows part of a plain table again, in place."""
    learned = encoder.get_input_embeddings()
    if isinstance(learned, LearnedTokens):
        _extend_table(encoder, learned.table, learned.rows.detach())


def add_words(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, words: Mapping[str, Tensor]
) -> None:
    """Add words with their embeddings, (D,) each, to a plain model, in place."""
    table = encoder.get_input_embeddings()
    _add_to_tokenizer(tokenizer, table, list(words))
    _extend_table(encoder, table, torch.stack(list(words.values())).to(table.weight))


def _extend_table(encoder: CLIPTextModel, table: nn.Embedding, rows: Tensor) -> None:
    weights = torch.cat([table.weight.detach(), rows])
    wider = nn.Embedding.from_pretrained(weights, freeze=False)  # type: ignore[no-untyped-call]
    encoder.set_input_embeddings(wider)
    encoder.config.vocab_size = len(weights)


def save_words(words: Mapping[str, Tensor], folder: Path) -> None:
    """Write words and embeddings, (1, D) each: one word is a textual inversion for diffusers."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({w: v[None].cpu().contiguous() for w, v in words.items()}, folder / FILE)


def load_words(folder: Path) -> dict[str, Tensor]:
    """Words and embeddings from `save_words`, (D,) each, sorted by word; empty if none."""
    path = folder / FILE
    return {w: v[0] for w, v in sorted(load_file(path).items())} if path.is_file() else {}
