"""The training objective.

Legend: B batch, C latent channels, h, w latent sides.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from dreambooth_ray.errors import ConfigError

Number = TypeVar("Number", float, Tensor)


class BackgroundTarget(NamedTuple):
    """What is compared with another target, in the first P images of a batch.

    target: (P, C, h, w); shares: (P, 1, h, w) of an error's weight, 1 where all is compared with it
    """

    target: Tensor
    shares: Tensor


def compute_target(
    schedule: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """The denoiser's target, by the model's prediction type.

    latents, noise: (B, C, h, w) float32; timesteps: (B,) int64; returns (B, C, h, w)
    raises: ConfigError for a prediction type that is neither epsilon nor v_prediction
    """
    prediction_type = schedule.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        velocity: Tensor = schedule.get_velocity(latents, noise, timesteps)
        return velocity
    raise ConfigError(
        f"model.uri: its scheduler predicts {prediction_type!r}; "
        "epsilon and v_prediction can be trained"
    )


def compute_snr_weights(schedule: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Weight of each sample's error, so that easy timesteps don't outweigh the others.

    min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for velocity, both the
    same weight on the predicted image; 0 at zero SNR, where velocity says nothing of it.
    timesteps: (B,) int64; returns (B,) float32
    Source: Hang et al. 2023, arXiv 2303.09556, section 3.4.
    """
    alpha_bar: Tensor = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    clamped_snr = snr.clamp(max=gamma)
    if schedule.config.prediction_type == "v_prediction":
        return clamped_snr / (snr + 1)
    return clamped_snr / snr


def compute_sample_errors(
    prediction: Tensor,
    target: Tensor,
    huber_delta: float | None = None,
    weights: Tensor | None = None,
    background: BackgroundTarget | None = None,
) -> Tensor:
    """Mean squared error of each sample; with a delta, errors beyond it count linearly.

    weights: (B, 1, h, w) of the mean, at least 0
    prediction, target: (B, C, h, w); returns (B,) float32
    """
    elementwise_errors = _compute_elementwise_errors(prediction, target, huber_delta)
    if background is not None:
        num_with_background = len(background.target)
        background_errors = _compute_elementwise_errors(
            prediction[:num_with_background], background.target, huber_delta
        )
        elementwise_errors = torch.cat(
            [
                elementwise_errors[:num_with_background].lerp(background_errors, background.shares),
                elementwise_errors[num_with_background:],
            ]
        )
    if weights is None:
        return elementwise_errors.mean(dim=(1, 2, 3))
    weighted_error_sums = (elementwise_errors * weights).sum(dim=(1, 2, 3))
    return weighted_error_sums / (weights.sum(dim=(1, 2, 3)) * elementwise_errors.shape[1])


def _compute_elementwise_errors(
    prediction: Tensor, target: Tensor, huber_delta: float | None
) -> Tensor:
    """(B, C, h, w) squared errors, or by a delta."""
    if huber_delta is None:
        return (prediction.float() - target.float()).square()
    # Twice, to equal the squared error of small errors.
    return 2 * F.huber_loss(prediction.float(), target.float(), reduction="none", delta=huber_delta)


def weigh_masks(masks: Tensor, background_weight: float) -> Tensor:
    """(B, 1, h, w) weights of errors: 1 inside a mask. masks: (B, 1, h, w) share of the subject"""
    return background_weight + (1 - background_weight) * masks


def mean_instance_and_prior_errors(errors: Tensor, num_photographs: int) -> tuple[Tensor, Tensor]:
    """Mean error over subject images, and over class images.

    errors: (B,) float32, already weighted, if at all; num_photographs: how many of them, the
    first, are of subject images
    returns: two () float32; the second is 0 where the batch has no class image
    raises: ConfigError if the batch has no subject image
    """
    if num_photographs < 1:
        raise ConfigError(
            "a batch without a photograph can't be trained on; check train.batch_size"
        )
    instance_error = errors[:num_photographs].mean()
    has_class_images = num_photographs < len(errors)
    prior_error = (
        errors[num_photographs:].mean() if has_class_images else torch.zeros_like(instance_error)
    )
    return instance_error, prior_error


def prior_preserving_loss(
    instance: Number, priors: Sequence[Number], weights: Sequence[float]
) -> Number:
    """The losses as one: error over subject images plus weighted errors of what is kept.

    priors: errors over class images, or of the base model's output, or both, with their `weights`
    Source: Ruiz et al. 2023, arXiv 2208.12242, eq. 2.
    """
    loss = instance
    for prior_error, prior_weight in zip(priors, weights, strict=True):
        loss = loss + prior_weight * prior_error
    return loss
