"""One worker's share of a step.

Legend: B batch of one worker (photographs first, then class images), P photographs in it, C latent
channels, h, w latent sides, k windows of a caption, L tokens, D their width.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass
class PreservedCaptions:
    """The captions of P photographs, without identifier.

    input_ids: (P, L) or (P, k, L) int64; hidden: (P, k L, D) as in `Batch`; base_hidden:
    (P, k L, D) their embeddings by the base model
    """

    input_ids: Tensor
    base_hidden: Tensor
    hidden: Tensor | None

    def pin_memory(self) -> "PreservedCaptions":
        """As `Batch.pin_memory`."""
        hidden = None if self.hidden is None else self.hidden.pin_memory()
        return PreservedCaptions(self.input_ids.pin_memory(), self.base_hidden.pin_memory(), hidden)


@dataclass
class Batch:
    """One worker's share of a step, or a part of it. Lightning moves it to the device in place.

    latents, noise: (B, C, h, w) float32; timesteps: (B,) int64; input_ids: (B, L) int64, or
    (B, k, L) where captions are long; num_photographs: rows of photographs, which come first; step
    counts from 0; hidden: (B, k L, D) text embeddings, where the text encoder is frozen, else None;
    starts_step, ends_step: whether it is the first and the last part of its step
    preserved: what the base model's output on the photographs is kept under, where it is kept
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    input_ids: Tensor
    num_photographs: int
    step: int
    hidden: Tensor | None = None
    ends_step: bool = True
    starts_step: bool = True
    preserved: PreservedCaptions | None = None

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies while the host goes on; torch's loader calls this."""
        pinned: dict[str, Any] = {
            name: value.pin_memory()
            for name, value in vars(self).items()
            if isinstance(value, Tensor | PreservedCaptions)
        }
        return replace(self, **pinned)
