"""One worker's share of a step.

Legend: B batch of one worker (photographs first, then class images), P photographs in it, C latent
channels, h, w latent sides.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from dreambooth_ray.models.conditioning import Conditioning


@dataclass
class PreservedCaptions:
    """The captions of P photographs, without identifier; what they are is as in `Batch`.

    base_conditioning: by the base model's text encoders
    """

    base_conditioning: Conditioning
    tokens: Conditioning | None
    conditioning: Conditioning | None

    def pin_memory(self) -> "PreservedCaptions":
        """As `Batch.pin_memory`."""
        tokens, conditioning = self.tokens, self.conditioning
        return PreservedCaptions(
            self.base_conditioning.pin_memory(),
            None if tokens is None else tokens.pin_memory(),
            None if conditioning is None else conditioning.pin_memory(),
        )


@dataclass
class Batch:
    """One worker's share of a step, or a part of it. Lightning moves it to the device in place.

    latents, noise: (B, C, h, w) float32; times: (B,) of the forward process
    tokens: of the captions, where a text encoder is trained, else None
    conditioning: by the captions, where all text encoders are frozen, else None
    frames: (B, 6) int64, of `ImageFrame`, from which image and from where in it the latents are
    num_photographs: rows of photographs, which come first; step counts from 0
    starts_step, ends_step: whether it is the first and the last part of its step
    preserved: what the base model's output on the photographs is kept under, where it is kept
    weights: (B, 1, h, w) of the errors inside an image, where masks are used
    others: rows of the same part whose images are of other shapes: a forward each
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    tokens: Conditioning | None
    conditioning: Conditioning | None
    frames: Tensor
    num_photographs: int
    step: int
    ends_step: bool = True
    starts_step: bool = True
    preserved: PreservedCaptions | None = None
    weights: Tensor | None = None
    others: "list[Batch]" = field(default_factory=list)

    @property
    def forwards(self) -> "list[Batch]":
        """What is predicted at once each."""
        return [self, *self.others]

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies while the host goes on; torch's loader calls this."""
        pinned: dict[str, Any] = {
            name: value.pin_memory()
            for name, value in vars(self).items()
            if isinstance(value, Tensor | Conditioning | PreservedCaptions)
        }
        return replace(self, **pinned, others=[other.pin_memory() for other in self.others])
