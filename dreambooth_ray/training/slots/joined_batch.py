"""The batches of several subjects as one: slot after slot, photographs first in each.

Legend: K slots, b rows of a slot, R = K b rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_functions import ModelFunctions
from dreambooth_ray.training.batch import Batch


@dataclass(frozen=True)
class JoinedBatch:
    """latents, noise: (R, C, h, w) float32; times: (R,); conditioning: R rows, with frames."""

    latents: Tensor
    noise: Tensor
    times: Tensor
    conditioning: Conditioning
    num_rows: int

    def rows_of(self, slot: int) -> slice:
        """The rows of a slot."""
        return slice(slot * self.num_rows, (slot + 1) * self.num_rows)


def join_batches(
    functions: ModelFunctions,
    batches: Mapping[int, Batch],
    num_slots: int,
    device: torch.device,
) -> JoinedBatch:
    """One batch of all slots; rows of those without a batch are anybody's, and count for nothing.

    batches: by slot, with as many rows each
    """
    filler = next(iter(batches.values()))
    by_slot = [batches.get(slot, filler) for slot in range(num_slots)]
    rows = [_get_conditioning(batch) for batch in by_slot]
    joined_rows = rows[0] if len(rows) == 1 else functions.join_rows(rows)
    frames = torch.cat([batch.frames for batch in by_slot]).to(device)
    return JoinedBatch(
        torch.cat([batch.latents for batch in by_slot]).to(device),
        torch.cat([batch.noise for batch in by_slot]).to(device),
        torch.cat([batch.times for batch in by_slot]).to(device),
        functions.add_frames(joined_rows.to(device), frames),
        len(filler.latents),
    )


def _get_conditioning(batch: Batch) -> Conditioning:
    assert batch.conditioning is not None, "text encoders are frozen in slots"
    return batch.conditioning
