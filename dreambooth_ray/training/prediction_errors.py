"""How far predictions are from their targets.

Legend: B batch of one worker, P photographs in it, C latent channels, h, w latent sides.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import LossConfig
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.precision import autocast_dtype
from dreambooth_ray.objective import loss as objective
from dreambooth_ray.objective.forward_process import ForwardProcess
from dreambooth_ray.objective.loss import BackgroundTarget
from dreambooth_ray.training.batch import Batch, IdentifierFreeCaptions
from dreambooth_ray.training.recorded_forwards import StepForwards


class ForwardInputs(NamedTuple):
    """Noisy latents and times, and the captions and frames of the images, as in `Batch`."""

    noisy: Tensor
    times: Tensor
    tokens: Conditioning | None
    conditioning: Conditioning | None
    frames: Tensor


def autocast_networks(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """For the networks alone: noise, target and loss are computed in float32 around them.

    precision: as train.precision
    """
    if precision == "bf16-mixed":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def compute_weighted_sample_errors(
    process: ForwardProcess,
    loss: LossConfig,
    prediction: Tensor,
    target: Tensor,
    times: Tensor,
    mask_weights: Tensor | None = None,
    background: BackgroundTarget | None = None,
) -> Tensor:
    """(B,) error of each sample, weighted as configured. prediction, target: (B, C, h, w)

    mask_weights: (B, 1, h, w) of a batch with masks
    """
    errors = objective.compute_sample_errors(
        prediction, target, loss.huber_delta, mask_weights, background
    )
    time_weights = process.compute_weights(loss, times)
    return errors if time_weights is None else errors * time_weights


def combine_losses(
    prior_config: PriorConfig, errors: Tensor, output_errors: Tensor | None, num_photographs: int
) -> tuple[Tensor, Tensor]:
    """() loss of a batch, and (2,) or (3,) its parts; nothing is read from the device.

    errors: (B,), photographs first; output_errors: (P,), of what is kept, if anything
    The parts: over photographs, then in the order of `PriorConfig.loss_weights`.
    """
    prior_losses = [] if output_errors is None else [output_errors.mean()]
    instance_loss, class_image_loss = objective.mean_instance_and_prior_errors(
        errors, num_photographs
    )
    if prior_config.kind != "output":
        prior_losses.insert(0, class_image_loss)
    loss = objective.prior_preserving_loss(instance_loss, prior_losses, prior_config.loss_weights)
    return loss, torch.stack([instance_loss, *prior_losses])


class PredictionErrorCalculator:
    """Errors of the networks that `forwards` calls."""

    def __init__(self, config: Config, components: Components, forwards: StepForwards) -> None:
        self._config, self._forwards, self._functions = config, forwards, components.functions
        self._process = self._functions.forward_process(components)
        self._weigh_errors = partial(compute_weighted_sample_errors, self._process, config.loss)
        self._embed_tokens = (
            self._functions.text_training.make_token_encoder(components, forwards.text_functions)
            if forwards.text_functions
            else None
        )

    def compute_all_errors(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Errors of the rows of all shapes, photographs first, and of what is kept, if anything."""
        # Plain lists: torch.compile knows no list[Tensor]().
        photograph_errors: list[Tensor] = []
        class_image_errors: list[Tensor] = []
        preservation_errors: list[Tensor] = []
        for forward_batch in batch.same_shape_batches:
            if forward_batch.preserved is None:
                errors = self.compute_errors(forward_batch)
            else:
                errors, forward_preservation_errors = self.compute_training_and_preservation_errors(
                    forward_batch, forward_batch.preserved
                )
                preservation_errors.append(forward_preservation_errors)
            photograph_errors.append(errors[: forward_batch.num_photographs])
            class_image_errors.append(errors[forward_batch.num_photographs :])
        return torch.cat(photograph_errors + class_image_errors), torch.cat(
            preservation_errors
        ) if preservation_errors else None

    def compute_errors(self, batch: Batch) -> Tensor:
        """(B,) error of each sample's prediction in one forward, weighted as configured."""
        noisy_latents = self._process.add_noise(batch.latents, batch.noise, batch.times)
        base_output = self._predict_background_target(batch, noisy_latents)
        with self._autocast_context(batch.latents):
            prediction = self._predict(
                ForwardInputs(
                    noisy_latents, batch.times, batch.tokens, batch.conditioning, batch.frames
                )
            )
        return self._compare_with_targets(batch, prediction, base_output)

    def _predict_background_target(self, batch: Batch, noisy: Tensor) -> Tensor | None:
        """(P, C, h, w) what is to be outside the masks, if not the photographs themselves.

        Before the trained forward, which holds memory until its backward.
        """
        if batch.base_conditioning is None:
            return None
        photograph_rows = slice(batch.num_photographs)
        return self._predict_with_base_model(
            noisy[photograph_rows],
            batch.times[photograph_rows],
            self._add_size_conditioning(batch.base_conditioning, batch.frames[photograph_rows]),
        )

    def _compare_with_targets(
        self, batch: Batch, prediction: Tensor, base_output: Tensor | None = None
    ) -> Tensor:
        """(B,) errors against a batch's own targets."""
        target = self._process.compute_target(batch.latents, batch.noise, batch.times)
        mask_weights = background_target = None
        if batch.masks is not None:
            background_weight = self._config.train.mask_background
            assert background_weight is not None
            mask_weights = objective.weigh_masks(batch.masks, background_weight)
            if base_output is not None:
                outside_weights = background_weight * (1 - batch.masks) / mask_weights
                background_target = BackgroundTarget(
                    base_output, outside_weights[: len(base_output)]
                )
        return self._weigh_errors(prediction, target, batch.times, mask_weights, background_target)

    def _autocast_context(self, latents: Tensor) -> AbstractContextManager[Any]:
        return autocast_networks(self._config.train.precision, latents.device)

    def _predict(self, inputs: ForwardInputs) -> Tensor:
        noisy_latents, conditioning = inputs.noisy, inputs.conditioning
        if conditioning is None:
            assert inputs.tokens is not None
            assert self._embed_tokens is not None
            conditioning = self._embed_tokens(inputs.tokens)
        if (
            self._config.train.strategy == "deepspeed"
            and self._config.train.precision == "16-mixed"
        ):
            # As DeepSpeed's weights are.
            noisy_latents, conditioning = (
                noisy_latents.half(),
                conditioning.to(noisy_latents.device, torch.float16),
            )
        return self._forwards.predict(
            noisy_latents,
            inputs.times,
            self._add_size_conditioning(conditioning, inputs.frames),
        )

    def _add_size_conditioning(self, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        return self._functions.add_frames(conditioning, frames)

    def compute_training_and_preservation_errors(
        self, batch: Batch, preserved: IdentifierFreeCaptions
    ) -> tuple[Tensor, Tensor]:
        """(B,) errors, and (P,) how far the output on the photographs is from the base model's."""
        noisy_latents = self._process.add_noise(batch.latents, batch.noise, batch.times)
        photograph_rows = slice(batch.num_photographs)
        photograph_inputs = noisy_latents[photograph_rows], batch.times[photograph_rows]
        base_output = self._predict_background_target(batch, noisy_latents)
        photograph_image_frames = batch.frames[photograph_rows]
        with self._autocast_context(batch.latents):
            prediction, preserved_prediction = self._predict_both(
                ForwardInputs(
                    noisy_latents, batch.times, batch.tokens, batch.conditioning, batch.frames
                ),
                ForwardInputs(
                    *photograph_inputs,
                    preserved.tokens,
                    preserved.conditioning,
                    photograph_image_frames,
                ),
            )
        base_prediction = self._predict_with_base_model(
            *photograph_inputs,
            self._add_size_conditioning(preserved.base_conditioning, photograph_image_frames),
        )
        return (
            self._compare_with_targets(batch, prediction, base_output),
            self._weigh_errors(preserved_prediction, base_prediction, photograph_inputs[1]),
        )

    def _predict_with_base_model(
        self, noisy: Tensor, times: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """By the base model, without gradients."""
        dtype = autocast_dtype(self._config.train.precision)
        # Its layers are in that dtype, whatever the strategy does with the trained ones.
        with torch.autocast(noisy.device.type, dtype, enabled=dtype != torch.float32):
            return self._forwards.predict_with_base_model(noisy, times, conditioning)

    def _predict_both(self, first: ForwardInputs, second: ForwardInputs) -> tuple[Tensor, Tensor]:
        """Predictions for two sets of inputs."""
        if not self._is_on_gpu(first.noisy):
            # Forwards of their own: the second then equals the base model's bit for bit, as long as
            # nothing is learnt. A row's result depends on how many there are.
            return self._predict(first), self._predict(second)
        # A CUDA graph's second forward would overwrite what its first keeps for the backward.
        prediction = self._predict(
            ForwardInputs(
                torch.cat([first.noisy, second.noisy]),
                torch.cat([first.times, second.times]),
                _join_conditionings(first.tokens, second.tokens),
                _join_conditionings(first.conditioning, second.conditioning),
                torch.cat([first.frames, second.frames]),
            )
        )
        return prediction[: len(first.noisy)], prediction[len(first.noisy) :]

    def _is_on_gpu(self, noisy: Tensor) -> bool:
        return noisy.device.type == "cuda"


def _join_conditionings(
    first: Conditioning | None, second: Conditioning | None
) -> Conditioning | None:
    if first is None or second is None:
        return None
    return Conditioning.join([first, second])
