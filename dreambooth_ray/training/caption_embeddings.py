"""Captions as the text encoder takes them, and their embeddings where those stay as they are.

Legend: K different captions, P photographs, k windows of a caption, L tokens, D their width.
"""

import torch
from torch import Tensor

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.trainable_params import is_trained
from dreambooth_ray.sampling.prompt_windows import embed_windows, tokenize_windows
from dreambooth_ray.training.batch import PreservedCaptions


class CaptionEmbeddings:
    """Token ids of all captions, and their embeddings where the text encoder is frozen.

    Captions longer than the encoder's window are taken whole, in k windows; then all have k.

    ids: (K, L) or (K, k, L) int64; hidden: (K, k L, D) float32 or None
    """

    def __init__(self, components: Components, captions: list[str]) -> None:
        unique_captions = sorted(set(captions))
        self._row = {caption: row for row, caption in enumerate(unique_captions)}
        self.ids = tokenize_windows(components.tokenizer, unique_captions)
        self.hidden = (
            None if is_trained(components.text_encoder) else _embed_captions(components, self.ids)
        )

    def look_up(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """The captions' rows of ids and, where cached, of embeddings."""
        rows = [self._row[caption] for caption in captions]
        return self.ids[rows], None if self.hidden is None else self.hidden[rows]


@torch.no_grad()
def _embed_captions(components: Components, ids: Tensor) -> Tensor:
    """One by one, so that a caption's embedding does not depend on its neighbours."""
    encoder = components.text_encoder

    def encode(rows: Tensor) -> Tensor:
        return torch.cat([encoder(row[None]).last_hidden_state for row in rows])

    end_id = components.tokenizer.eos_token_id
    return torch.cat(
        [embed_windows(encode, row[None].to(encoder.device), end_id).cpu() for row in ids]
    )


class PreservedEmbeddings:
    """Captions without identifier, as the base model and the trained one embed them.

    Make it before training: what is embedded then is the base model's.
    """

    def __init__(
        self, components: Components, all_captions: CaptionEmbeddings, captions: list[str]
    ) -> None:
        """captions: of `all_captions`, so that all have as many windows"""
        unique_captions = sorted(set(captions))
        self._row = {caption: row for row, caption in enumerate(unique_captions)}
        self._captions = all_captions
        ids, hidden = all_captions.look_up(unique_captions)
        self._base_hidden = _embed_captions(components, ids) if hidden is None else hidden

    def look_up(self, captions: list[str]) -> PreservedCaptions:
        """A batch's."""
        ids, hidden = self._captions.look_up(captions)
        if hidden is not None:
            return PreservedCaptions(ids, hidden, hidden)
        rows = [self._row[caption] for caption in captions]
        return PreservedCaptions(ids, self._base_hidden[rows], None)
