"""Hidden states of prompts of different lengths, in one forward.

Legend: B batch, L tokens of a prompt, D width of the text encoder.
"""

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F

from dreambooth_ray.models.conditioning import Conditioning


class PaddedPromptMixin:
    """A first base class of `ModelFunctions` whose forwards take prompts of all lengths at once."""

    def join_rows(self, rows: Sequence[Conditioning]) -> Conditioning:
        """All rows of `hidden`, (B, L, ..., D), with zeros behind the shorter ones.

        Where there are any, `is_token`, (B, L) bool, says what is no padding.
        """
        prompt_lengths = [row["hidden"].shape[1] for row in rows]
        if len(set(prompt_lengths)) == 1:
            return Conditioning.join(rows)
        return Conditioning.join([_pad_row(row, max(prompt_lengths)) for row in rows])

    def batch_key(self, conditioning: Conditioning) -> Hashable:
        """All can share a forward."""
        return None


def _pad_row(row: Conditioning, num_tokens: int) -> Conditioning:
    hidden = row["hidden"]
    prompt_length = hidden.shape[1]
    token_mask = torch.arange(num_tokens, device=hidden.device)[None] < prompt_length
    return Conditioning(
        {
            "hidden": F.pad(hidden, (*(0, 0) * (hidden.ndim - 2), 0, num_tokens - prompt_length)),
            "is_token": token_mask.expand(len(row), -1),
        }
    )
