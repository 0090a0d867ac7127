"""Of compel: its windows and weights over a forward of our own.

compel's own forward has one clip_skip for all prompts, and knows no adapters.

Private: EmbeddingsProvider._encode_token_ids_to_embeddings, the one call that reaches the encoder.
"""

from collections.abc import Callable
from typing import Any

import torch
from compel.embeddings_provider import EmbeddingsProvider, SplitLongTextMode
from torch import Tensor

SPLIT_MODE = SplitLongTextMode.WORDS | SplitLongTextMode.COPY_FIRST_CLS_TOKEN
# Token ids (1, L) and an optional mask to embeddings (1, L, D).
EncoderForward = Callable[[Tensor, Tensor | None], Tensor]


class _ForwardEmbeddingsProvider(EmbeddingsProvider):  # type: ignore[misc]
    def __init__(self, tokenizer: Any, encoder: Any, forward: EncoderForward) -> None:
        super().__init__(
            tokenizer,
            encoder,
            truncate=False,
            split_long_text_mode=SPLIT_MODE,
        )
        self._embed = forward

    def _encode_token_ids_to_embeddings(
        self, token_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        return self._embed(token_ids, attention_mask)


def embed_fragments(
    tokenizer: Any, encoder: Any, forward: EncoderForward, parts: list[tuple[str, float]]
) -> Tensor:
    """Embeddings (1, k L, D) of weighted fragments of one prompt, in k windows.

    encoder: gives its device and its size; forward: what is called in its place
    """
    embeddings_provider = _ForwardEmbeddingsProvider(tokenizer, encoder, forward)
    fragment_texts, fragment_weights = [text for text, _ in parts], [weight for _, weight in parts]
    embeddings = embeddings_provider.get_embeddings_for_weighted_prompt_fragments(
        [fragment_texts], [fragment_weights], device=embeddings_provider.device
    )
    return torch.as_tensor(embeddings)
