"""The training objective.

Legend: B batch, C latent channels, h, w latent sides.
"""

from typing import TypeVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from dreambooth_ray.errors import ConfigError

Number = TypeVar("Number", float, Tensor)


def target(schedule: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser is to predict, by the model's own prediction type.

    latents, noise: (B, C, h, w) float32; timesteps: (B,) int64; returns (B, C, h, w)
    raises: ConfigError for a prediction type that is neither epsilon nor v_prediction
    """
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = schedule.get_velocity(latents, noise, timesteps)
        return velocity
    raise ConfigError(
        f"model.uri: its scheduler predicts {kind!r}; epsilon and v_prediction can be trained"
    )


def min_snr_weights(schedule: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Weight of each sample's error, so that easy timesteps don't outweigh the others.

    min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for velocity, both the
    same weight on the predicted image; 0 at zero SNR, where velocity says nothing of it.
    timesteps: (B,) int64; returns (B,) float32
    Source: Hang et al. 2023, arXiv 2303.09556, section 3.4.
    """
    share: Tensor = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = share / (1 - share)
    capped = snr.clamp(max=gamma)
    if schedule.config.prediction_type == "v_prediction":
        return capped / (snr + 1)
    return capped / snr


def sample_errors(prediction: Tensor, wanted: Tensor, huber_delta: float | None = None) -> Tensor:
    """Mean squared error of each sample; with a delta, errors beyond it count linearly.

    prediction, wanted: (B, C, h, w); returns (B,) float32
    """
    if huber_delta is None:
        return (prediction.float() - wanted.float()).square().mean(dim=(1, 2, 3))
    each = F.huber_loss(prediction.float(), wanted.float(), reduction="none", delta=huber_delta)
    # Twice, to equal the squared error of small errors.
    return 2 * each.mean(dim=(1, 2, 3))


def halves(errors: Tensor, is_prior: Tensor) -> tuple[Tensor, Tensor]:
    """Mean error over subject images, and over class images.

    errors: (B,) float32, weighted already where weights are wanted; is_prior: (B,) bool
    returns: two () float32; the second is 0 where the batch has no class image
    raises: ConfigError if no subject image is there
    """
    if bool(is_prior.all()):
        raise ConfigError(
            "a batch without a photograph can't be trained on; check train.batch_size"
        )
    instance = errors[~is_prior].mean()
    prior = errors[is_prior].mean() if bool(is_prior.any()) else torch.zeros_like(instance)
    return instance, prior


def prior_preserving(instance: Number, prior: Number, prior_weight: float) -> Number:
    """The two halves as one: error over subject images plus weighted error over class images.

    prior_weight: lambda, unitless
    Source: Ruiz et al. 2023, arXiv 2208.12242, eq. 2.
    """
    return instance + prior_weight * prior
