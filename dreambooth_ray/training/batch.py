"""One worker's share of a step.

Legend: B batch of one worker (photographs first, then class images), P photographs in it, C latent
channels, h, w latent sides.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dreambooth_ray.models.conditioning import Conditioning


@dataclass
class IdentifierFreeCaptions:
    """The captions of P photographs, without identifier; what they are is as in `Batch`.

    base_conditioning: by the base model's text encoders
    """

    base_conditioning: Conditioning
    tokens: Conditioning | None
    conditioning: Conditioning | None

    def pin_memory(self) -> "IdentifierFreeCaptions":
        """As `Batch.pin_memory`."""
        return _replace_tensors(self, lambda value: value.pin_memory())

    def on_device(self, device: torch.device) -> "IdentifierFreeCaptions":
        """As `Batch.on_device`."""
        return _replace_tensors(self, lambda value: _move(value, device))


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
    masks: (B, 1, h, w) share of each latent's area that is the subject's, 1 in an image without
        mask; where masks are used
    base_conditioning: by the photographs' captions and the base model's text encoders, where its
        output is what is to be outside the masks
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
    preserved: IdentifierFreeCaptions | None = None
    masks: Tensor | None = None
    base_conditioning: Conditioning | None = None
    others: "list[Batch]" = field(default_factory=list)

    @property
    def same_shape_batches(self) -> "list[Batch]":
        """What is predicted at once each."""
        return [self, *self.others]

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies while the host goes on; torch's loader calls this."""
        pinned_batch = _replace_tensors(self, lambda value: value.pin_memory())
        return replace(pinned_batch, others=[other.pin_memory() for other in self.others])

    def on_device(self, device: torch.device) -> "Batch":
        """Another, on a device."""
        moved_batch = _replace_tensors(self, lambda value: _move(value, device))
        return replace(moved_batch, others=[other.on_device(device) for other in self.others])


_Part = TypeVar("_Part", Batch, IdentifierFreeCaptions)


def _replace_tensors(part: _Part, change: Callable[[Any], Any]) -> _Part:
    """With each tensor, conditioning and captions changed."""
    tensor_classes = Tensor | Conditioning | IdentifierFreeCaptions
    changed_tensors: dict[str, Any] = {
        name: change(value)
        for name, value in vars(part).items()
        if isinstance(value, tensor_classes)
    }
    return replace(part, **changed_tensors)


def _move(value: Any, device: torch.device) -> Any:
    return (
        value.on_device(device) if isinstance(value, IdentifierFreeCaptions) else value.to(device)
    )
