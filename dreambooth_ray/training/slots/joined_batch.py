"""The batches of several subjects as one: slot after slot, photographs first in each.

Legend: K slots, b rows of a slot, R = K b rows, p photographs of a slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_functions import ModelFunctions
from dreambooth_ray.training.batch import Batch


@dataclass(frozen=True)
class OutputPreservationRows:
    """The photographs once more: under captions without identifier, the base model's output on
    them is kept.

    rows: (K p,) which of the R; base_conditioning: K p rows, by the base model's text encoders
    conditioning: K p rows; None where they are behind the b rows of each slot in the batch's own
    """

    rows: Tensor
    base_conditioning: Conditioning
    conditioning: Conditioning | None


@dataclass(frozen=True)
class JoinedBatch:
    """latents, noise: (R, C, h, w) float32; times: (R,); conditioning: R rows, with frames.

    num_rows: b; num_photographs: p; kept: where the base model's output is kept
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    conditioning: Conditioning
    num_rows: int
    num_photographs: int
    kept: OutputPreservationRows | None = None

    def rows_of(self, slot: int) -> slice:
        """The rows of a slot."""
        return slice(slot * self.num_rows, (slot + 1) * self.num_rows)

    def preserved_rows_of(self, slot: int) -> slice:
        """Of a slot, among those of `kept`."""
        return slice(slot * self.num_photographs, (slot + 1) * self.num_photographs)


def join_batches(
    functions: ModelFunctions,
    batches: Mapping[int, Batch],
    num_slots: int,
    device: torch.device,
    *,
    in_one_forward: bool = False,
) -> JoinedBatch:
    """One batch of all slots; rows of those without a batch are anybody's, and count for nothing.

    batches: by slot, with as many rows each, and as many photographs
    in_one_forward: whether photographs on which the output is kept go with all others
    """
    filler_batch = next(iter(batches.values()))
    batches_by_slot = [batches.get(slot, filler_batch) for slot in range(num_slots)]
    conditionings, size_conditionings = list[Conditioning](), list[Tensor]()
    for batch in batches_by_slot:
        conditionings.append(_require_conditioning(batch.conditioning))
        size_conditionings.append(batch.frames)
        if in_one_forward and batch.preserved is not None:
            conditionings.append(_require_conditioning(batch.preserved.conditioning))
            size_conditionings.append(batch.frames[: batch.num_photographs])
    return JoinedBatch(
        torch.cat([batch.latents for batch in batches_by_slot]).to(device),
        torch.cat([batch.noise for batch in batches_by_slot]).to(device),
        torch.cat([batch.times for batch in batches_by_slot]).to(device),
        _join_conditioning(functions, conditionings, size_conditionings, device),
        len(filler_batch.latents),
        filler_batch.num_photographs,
        _join_output_preservation_rows(
            functions, batches_by_slot, device, in_one_forward=in_one_forward
        ),
    )


def _require_conditioning(conditioning: Conditioning | None) -> Conditioning:
    assert conditioning is not None, "text encoders are frozen in slots"
    return conditioning


def _join_output_preservation_rows(
    functions: ModelFunctions, batches_by_slot: Sequence[Batch], device: torch.device, *,
    in_one_forward: bool,
) -> OutputPreservationRows | None:  # fmt: skip
    preserved_captions = [
        batch.preserved for batch in batches_by_slot if batch.preserved is not None
    ]
    if not preserved_captions:
        return None
    num_rows_per_slot, num_photographs_per_slot = (
        len(batches_by_slot[0].latents),
        batches_by_slot[0].num_photographs,
    )
    size_conditionings = [batch.frames[:num_photographs_per_slot] for batch in batches_by_slot]
    caption_conditionings = [_require_conditioning(c.conditioning) for c in preserved_captions]
    first_row_indices = (
        torch.arange(len(batches_by_slot), device=device)[:, None] * num_rows_per_slot
    )
    return OutputPreservationRows(
        (first_row_indices + torch.arange(num_photographs_per_slot, device=device)).flatten(),
        _join_conditioning(
            functions, [c.base_conditioning for c in preserved_captions], size_conditionings, device
        ),
        None
        if in_one_forward
        else _join_conditioning(functions, caption_conditionings, size_conditionings, device),
    )


def _join_conditioning(
    functions: ModelFunctions,
    conditionings: Sequence[Conditioning],
    size_conditionings: Sequence[Tensor],
    device: torch.device,
) -> Conditioning:
    """With what the denoiser is told of sizes."""
    joined_conditioning = (
        conditionings[0] if len(conditionings) == 1 else functions.join_rows(conditionings)
    )
    return functions.add_frames(
        joined_conditioning.to(device), torch.cat(list(size_conditionings)).to(device)
    )
