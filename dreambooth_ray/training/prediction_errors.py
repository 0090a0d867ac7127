"""How far predictions are from their targets.

Legend: B batch of one worker, P photographs in it, C latent channels, h, w latent sides, k windows
of a caption, L tokens, D their width.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.precision import autocast_dtype
from dreambooth_ray.objective import loss as objective
from dreambooth_ray.sampling.prompt_windows import embed_windows
from dreambooth_ray.training.batch import Batch, PreservedCaptions
from dreambooth_ray.training.recorded_forwards import RecordedForwards

# Noisy latents, timesteps, token ids, and embeddings where they are cached.
ForwardInputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


class PredictionErrors:
    """Errors of the networks that `forwards` calls."""

    def __init__(
        self, config: Config, schedule: DDPMScheduler, forwards: RecordedForwards, end_id: int
    ) -> None:
        """end_id: of the token that ends a text"""
        self._config, self._schedule = config, schedule
        self._forwards, self._end_id = forwards, end_id

    def compute_errors(self, batch: Batch) -> Tensor:
        """(B,) error of each sample's prediction, weighted as configured."""
        noisy = self._schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        with self._compute_precision(batch.latents):
            hidden = self._embed_ids(batch.input_ids, batch.hidden)
            prediction = self._predict(noisy, batch.timesteps, hidden)
        target = objective.compute_target(
            self._schedule, batch.latents, batch.noise, batch.timesteps
        )
        return self._weigh_errors(prediction, target, batch.timesteps)

    def _weigh_errors(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        errors = objective.compute_sample_errors(prediction, target, self._config.loss.huber_delta)
        if gamma := self._config.loss.min_snr_gamma:
            errors = errors * objective.compute_snr_weights(self._schedule, timesteps, gamma)
        return errors

    def _compute_precision(self, latents: Tensor) -> AbstractContextManager[Any]:
        """Of the networks alone: noise, target and loss are computed in float32 around them."""
        if self._config.train.precision == "bf16-mixed":
            return torch.autocast(latents.device.type, torch.bfloat16)
        return nullcontext()

    def _predict(self, noisy: Tensor, timesteps: Tensor, hidden: Tensor) -> Tensor:
        if (
            self._config.train.strategy == "deepspeed"
            and self._config.train.precision == "16-mixed"
        ):
            noisy, hidden = noisy.half(), hidden.half()  # as DeepSpeed's weights are
        return self._forwards.predict(noisy, timesteps, hidden)

    def compute_both_errors(
        self, batch: Batch, preserved: PreservedCaptions
    ) -> tuple[Tensor, Tensor]:
        """(B,) errors, and (P,) how far the output on the photographs is from the base model's."""
        noisy = self._schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        photographs = slice(batch.num_photographs)
        kept = noisy[photographs], batch.timesteps[photographs]
        with self._compute_precision(batch.latents):
            prediction, kept_prediction = self._predict_both(
                (noisy, batch.timesteps, batch.input_ids, batch.hidden),
                (*kept, preserved.input_ids, preserved.hidden),
            )
        dtype = autocast_dtype(self._config.train.precision)
        # Its layers are in that dtype, whatever the strategy does with the trained ones.
        with torch.autocast(noisy.device.type, dtype, enabled=dtype != torch.float32):
            kept_target = self._forwards.predict_untrained(*kept, preserved.base_hidden)
        target = objective.compute_target(
            self._schedule, batch.latents, batch.noise, batch.timesteps
        )
        return (
            self._weigh_errors(prediction, target, batch.timesteps),
            self._weigh_errors(kept_prediction, kept_target, kept[1]),
        )

    def _predict_both(self, first: ForwardInputs, second: ForwardInputs) -> tuple[Tensor, Tensor]:
        """Predictions for two sets of noisy latents, timesteps, token ids and cached embeddings."""
        if not self._is_on_gpu(first[0]):
            # Forwards of their own: the second then equals the base model's bit for bit, as long as
            # nothing is learnt. A row's result depends on how many there are.
            first_prediction, second_prediction = (
                self._predict(noisy, timesteps, self._embed_ids(input_ids, hidden))
                for noisy, timesteps, input_ids, hidden in (first, second)
            )
            return first_prediction, second_prediction
        # A CUDA graph's second forward would overwrite what its first keeps for the backward.
        noisy, timesteps, input_ids = (
            torch.cat(pair) for pair in zip(first[:3], second[:3], strict=True)
        )
        cached = None
        if first[3] is not None and second[3] is not None:
            cached = torch.cat([first[3], second[3]])
        prediction = self._predict(noisy, timesteps, self._embed_ids(input_ids, cached))
        return prediction[: len(first[0])], prediction[len(first[0]) :]

    def _embed_ids(self, input_ids: Tensor, cached_hidden: Tensor | None) -> Tensor:
        """(B, k L, D) text embeddings: cached ones if the text encoder is frozen."""
        if cached_hidden is not None:
            return cached_hidden
        return embed_windows(self._forwards.embed_tokens, input_ids, self._end_id)

    def _is_on_gpu(self, latents: Tensor) -> bool:
        return latents.device.type == "cuda"
