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
class KeptRows:
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
    kept: KeptRows | None = None

    def rows_of(self, slot: int) -> slice:
        """The rows of a slot."""
        return slice(slot * self.num_rows, (slot + 1) * self.num_rows)

    def kept_rows_of(self, slot: int) -> slice:
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
    filler = next(iter(batches.values()))
    by_slot = [batches.get(slot, filler) for slot in range(num_slots)]
    rows, frames = list[Conditioning](), list[Tensor]()
    for batch in by_slot:
        rows.append(_refuse_none(batch.conditioning))
        frames.append(batch.frames)
        if in_one_forward and batch.preserved is not None:
            rows.append(_refuse_none(batch.preserved.conditioning))
            frames.append(batch.frames[: batch.num_photographs])
    return JoinedBatch(
        torch.cat([batch.latents for batch in by_slot]).to(device),
        torch.cat([batch.noise for batch in by_slot]).to(device),
        torch.cat([batch.times for batch in by_slot]).to(device),
        _join_conditioning(functions, rows, frames, device),
        len(filler.latents),
        filler.num_photographs,
        _join_kept(functions, by_slot, device, in_one_forward=in_one_forward),
    )


def _refuse_none(conditioning: Conditioning | None) -> Conditioning:
    assert conditioning is not None, "text encoders are frozen in slots"
    return conditioning


def _join_kept(
    functions: ModelFunctions, by_slot: Sequence[Batch], device: torch.device, *,
    in_one_forward: bool,
) -> KeptRows | None:  # fmt: skip
    captions = [batch.preserved for batch in by_slot if batch.preserved is not None]
    if not captions:
        return None
    num_rows, num_photographs = len(by_slot[0].latents), by_slot[0].num_photographs
    frames = [batch.frames[:num_photographs] for batch in by_slot]
    own = [_refuse_none(c.conditioning) for c in captions]
    firsts = torch.arange(len(by_slot), device=device)[:, None] * num_rows
    return KeptRows(
        (firsts + torch.arange(num_photographs, device=device)).flatten(),
        _join_conditioning(functions, [c.base_conditioning for c in captions], frames, device),
        None if in_one_forward else _join_conditioning(functions, own, frames, device),
    )


def _join_conditioning(
    functions: ModelFunctions,
    rows: Sequence[Conditioning],
    frames: Sequence[Tensor],
    device: torch.device,
) -> Conditioning:
    """With what the denoiser is told of sizes."""
    joined_rows = rows[0] if len(rows) == 1 else functions.join_rows(rows)
    return functions.add_frames(joined_rows.to(device), torch.cat(list(frames)).to(device))
