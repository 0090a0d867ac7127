"""What the network makes of a joined batch.

Legend: K slots, b rows of a slot, R = K b rows, p photographs of a slot, C latent channels, h, w
latent sides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_ray.training.recorded_forwards import StepForwards
from dreambooth_ray.training.slots.joined_batch import JoinedBatch, OutputPreservationRows


@dataclass(frozen=True)
class PreservedOutput:
    """prediction, target: (K p, C, h, w), with the adapters and by the base model"""

    prediction: Tensor
    target: Tensor


def predict_joined(
    forwards: StepForwards, joined: JoinedBatch, noisy: Tensor
) -> tuple[Tensor, PreservedOutput | None]:
    """(R, C, h, w) predictions, and what is kept, if anything.

    noisy: (R, C, h, w); forwards: with the base model's where its output is kept
    """
    preserved_rows = joined.kept
    if preserved_rows is None:
        return forwards.predict(noisy, joined.times, joined.conditioning), None
    preserved_noisy_latents, preserved_timesteps = (
        noisy[preserved_rows.rows],
        joined.times[preserved_rows.rows],
    )
    base_prediction = forwards.predict_with_base_model(
        preserved_noisy_latents, preserved_timesteps, preserved_rows.base_conditioning
    )
    if preserved_rows.conditioning is None:
        prediction, preserved_prediction = _predict_in_one_forward(
            forwards, joined, preserved_rows, noisy
        )
    else:
        # A forward of its own equals the base model's bit for bit, as long as nothing is learnt.
        prediction = forwards.predict(noisy, joined.times, joined.conditioning)
        preserved_prediction = forwards.predict(
            preserved_noisy_latents, preserved_timesteps, preserved_rows.conditioning
        )
    return prediction, PreservedOutput(preserved_prediction, base_prediction)


def _predict_in_one_forward(
    forwards: StepForwards,
    joined: JoinedBatch,
    preserved_rows: OutputPreservationRows,
    noisy: Tensor,
) -> tuple[Tensor, Tensor]:
    """As a CUDA graph has to: a second forward would overwrite what the first keeps."""
    num_rows = len(noisy)
    row_indices_by_slot = torch.cat(
        [
            torch.arange(num_rows, device=noisy.device).view(-1, joined.num_rows),
            preserved_rows.rows.view(-1, joined.num_photographs),
        ],
        dim=1,
    )
    row_indices = row_indices_by_slot.flatten()
    prediction = forwards.predict(
        noisy[row_indices], joined.times[row_indices], joined.conditioning
    )
    prediction_by_slot = prediction.view(*row_indices_by_slot.shape, *prediction.shape[1:])
    return (
        prediction_by_slot[:, : joined.num_rows].flatten(0, 1),
        prediction_by_slot[:, joined.num_rows :].flatten(0, 1),
    )
