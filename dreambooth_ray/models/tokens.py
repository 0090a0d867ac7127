"""Learned identifiers: new words of the tokenizer with embeddings of their own.

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
    """An embedding table and, behind it, rows that are trained apart from it.

    rows: (K, D); ids from the table's end on are theirs
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows)

    def forward(self, ids: Tensor) -> Tensor:
        """(..., L) int64 to (..., L, D)."""
        size = self.table.num_embeddings
        known: Tensor = self.table(ids.clamp(max=size - 1))
        learned = self.rows[(ids - size).clamp(min=0)]
        return torch.where((ids >= size)[..., None], learned, known)


def check_words(tokenizer: CLIPTokenizer, words: list[str]) -> None:
    """raises ConfigError if a word to be learnt is in the vocabulary already."""
    vocabulary = tokenizer.get_vocab()
    for word in words:
        if word in vocabulary:
            raise ConfigError(
                f"subject.identifier: {word} is a word of the model already, and "
                "identifier.kind=learned needs a new one; choose another, or kind rare_word"
            )


def learn(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, words: Mapping[str, str]) -> None:
    """Add words, each beginning as another text's mean embedding, and make them trainable.

    words: new word to the text it begins as; in place
    """
    table = encoder.get_input_embeddings()
    rows = [_mean(tokenizer, table, text) for text in words.values()]
    _name(tokenizer, table, list(words))
    encoder.set_input_embeddings(LearnedTokens(table, torch.stack(rows)))


def _mean(tokenizer: CLIPTokenizer, table: nn.Embedding, text: str) -> Tensor:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return table.weight.detach()[ids].mean(dim=0)


def _name(tokenizer: CLIPTokenizer, table: nn.Embedding, words: list[str]) -> None:
    """Give the words the ids behind the table, in order."""
    check_words(tokenizer, words)
    if len(tokenizer) != table.num_embeddings:
        raise ConfigError(
            f"the model's tokenizer knows {len(tokenizer)} words and its text encoder "
            f"{table.num_embeddings}; identifier.kind=learned needs a model where they agree"
        )
    tokenizer.add_tokens(words)


def vectors(tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> dict[str, Tensor]:
    """Learned words with their embeddings, (D,) each; empty if there are none."""
    learned = encoder.get_input_embeddings()
    if not isinstance(learned, LearnedTokens):
        return {}
    size = learned.table.num_embeddings
    words = tokenizer.convert_ids_to_tokens([size + k for k in range(len(learned.rows))])
    return dict(zip(words, learned.rows.detach(), strict=True))


def fold(encoder: CLIPTextModel) -> None:
    """Make learned rows part of a plain table again, in place."""
    learned = encoder.get_input_embeddings()
    if isinstance(learned, LearnedTokens):
        _extend(encoder, learned.table, learned.rows.detach())


def add(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, words: Mapping[str, Tensor]) -> None:
    """Add words with their embeddings, (D,) each, to a plain model, in place."""
    table = encoder.get_input_embeddings()
    _name(tokenizer, table, list(words))
    _extend(encoder, table, torch.stack(list(words.values())).to(table.weight))


def _extend(encoder: CLIPTextModel, table: nn.Embedding, rows: Tensor) -> None:
    whole = torch.cat([table.weight.detach(), rows])
    num, width = whole.shape
    wider = nn.Embedding(num, width, _weight=whole)
    encoder.set_input_embeddings(wider)
    encoder.config.vocab_size = len(whole)


def save(words: Mapping[str, Tensor], folder: Path) -> None:
    """Write words and embeddings, (1, D) each: one word is a textual inversion for diffusers."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({w: v[None].cpu().contiguous() for w, v in words.items()}, folder / FILE)


def read(folder: Path) -> dict[str, Tensor]:
    """What `save` wrote, (D,) each, in the order of the words' names; empty if nothing."""
    path = folder / FILE
    return {w: v[0] for w, v in sorted(load_file(path).items())} if path.is_file() else {}
