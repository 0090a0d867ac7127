"""The training objective.

Legend: B batch, C latent channels, h, w latent sides.
"""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dreambooth_ray.errors import ConfigError


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


def halves(prediction: Tensor, wanted: Tensor, is_prior: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over subject images, and over class images.

    prediction, wanted: (B, C, h, w); is_prior: (B,) bool
    returns: two () float32; the second is 0 where the batch has no class image
    raises: ConfigError if no subject image is there
    """
    if bool(is_prior.all()):
        raise ConfigError(
            "a batch without a photograph can't be trained on; check train.batch_size"
        )
    each = (prediction.float() - wanted.float()).square().mean(dim=(1, 2, 3))
    instance = each[~is_prior].mean()
    prior = each[is_prior].mean() if bool(is_prior.any()) else torch.zeros_like(instance)
    return instance, prior


def prior_preserving_loss(
    prediction: Tensor, wanted: Tensor, is_prior: Tensor, prior_weight: float
) -> Tensor:
    """Mean error over subject images plus weighted mean over class images.

    prediction, wanted: (B, C, h, w) float32, noise or velocity
    is_prior:           (B,) bool
    prior_weight:       lambda, unitless
    returns:            () float32
    Source: Ruiz et al. 2023, arXiv 2208.12242, eq. 2.
    """
    instance, prior = halves(prediction, wanted, is_prior)
    return instance + prior_weight * prior
