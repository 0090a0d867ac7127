"""Texts of any length as windows of tokens, split as `prompt_encoder` splits long prompts.

Legend: B texts, k windows of a text, L tokens of a window, D embedding width, P of what is pooled.
"""

from collections.abc import Callable

import torch
from compel.embeddings_provider import EmbeddingsProvider
from torch import Tensor
from transformers import CLIPTokenizer

from dreambooth_ray.compat.compel import SPLIT_MODE
from dreambooth_ray.models.components import Components


def limit_window_lengths(parts: Components) -> Components:
    """Parts whose tokenizers' windows have, in place, no more tokens than CLIP has places."""
    for part in parts.family.trainable_text_encoders:
        tokenizer = parts.tokenizers[part.tokenizer]
        max_tokens = int(parts.text_encoders[part.name].config.max_position_embeddings)
        tokenizer.model_max_length = min(tokenizer.model_max_length, max_tokens)
    return parts


def tokenize_windows(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids, (B, L) int64 where every text fits one window, else (B, k, L).

    Shorter texts end in windows of the empty text, as in `PromptEncoder.encode_pair`.
    """
    text_windows = [_tokenize_text_to_windows(tokenizer, text) for text in texts]
    num_windows = max(len(windows) for windows in text_windows)
    if num_windows == 1:
        return torch.cat(text_windows)
    empty_window = _tokenize_text_to_windows(tokenizer, "")
    return torch.stack(
        [
            torch.cat([windows, *[empty_window] * (num_windows - len(windows))])
            for windows in text_windows
        ]
    )


def _tokenize_text_to_windows(tokenizer: CLIPTokenizer, text: str) -> Tensor:
    """(k, L) int64 of one text."""
    window_length = int(tokenizer.model_max_length)
    token_ids: Tensor = tokenizer(
        text, padding="max_length", max_length=window_length, return_tensors="pt"
    ).input_ids
    if token_ids.shape[1] <= window_length:
        return token_ids
    embeddings_provider = EmbeddingsProvider(
        tokenizer, None, truncate=False, device="cpu", split_long_text_mode=SPLIT_MODE
    )
    windows: Tensor = embeddings_provider.get_token_ids_and_expand_weights(
        [text], [1.0], device="cpu"
    )[0]
    return windows.view(-1, window_length)


def embed_windows(encode: Callable[[Tensor], Tensor], ids: Tensor, end_id: int) -> Tensor:
    """(B, L, D) or (B, k L, D) embeddings of ids from `tokenize_windows`.

    encode: (N, L) ids to (N, L, D); end_id: of the token that ends a text
    """
    if ids.ndim == 2:
        return encode(ids)
    flat_hidden = encode(ids.flatten(0, 1))
    hidden = flat_hidden.reshape(*ids.shape, flat_hidden.shape[-1])
    # The first window's end says what the text is about: it stands at the end of each, as compel
    # has it. Windows of the empty text end at once, and stay.
    is_end = (ids == end_id) & ((ids == end_id).cumsum(dim=-1) == 1)
    gets_first_end_state = is_end.clone()
    gets_first_end_state[:, 0] = False
    gets_first_end_state[:, :, 1] = False
    first_end_state = (hidden[:, 0] * is_end[:, 0, :, None]).sum(dim=1)
    hidden = torch.where(gets_first_end_state[..., None], first_end_state[:, None, None], hidden)
    return hidden.flatten(1, 2)


def embed_pooled_windows(
    encode: Callable[[Tensor], tuple[Tensor, Tensor]], ids: Tensor, end_id: int
) -> tuple[Tensor, Tensor]:
    """As `embed_windows`, and (B, P), the pooled embedding of each text's first window.

    encode: (N, L) ids to (N, L, D) and (N, P)
    """
    pooled_windows: list[Tensor] = []

    def encode_and_keep_pooled(flat_ids: Tensor) -> Tensor:
        hidden, pooled = encode(flat_ids)
        pooled_windows.append(pooled)
        return hidden

    hidden = embed_windows(encode_and_keep_pooled, ids, end_id)
    num_windows = 1 if ids.ndim == 2 else ids.shape[1]
    return hidden, pooled_windows[0][::num_windows]
