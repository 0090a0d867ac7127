"""How images are noised, and what a denoiser is asked for: DDPM's way, and flow matching's.

Legend: B batch, C latent channels, h, w latent sides.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dreambooth_ray.config.training import LossConfig
from dreambooth_ray.objective import noise
from dreambooth_ray.objective.loss import compute_snr_weights, compute_target


class ForwardProcess(Protocol):
    """What training asks of a noise schedule. Times are the process' own: see the classes."""

    def sample_times(self, loss: LossConfig, seed: int, step: int, keys: list[int]) -> Tensor:
        """(B,) times of a step, each a pure function of its address."""

    def times_at_fractions(self, fractions: Sequence[float]) -> list[float]:
        """Times at fractions of the noising, 0 no noise and 1 nothing but noise."""

    def to_tensor(self, times: Sequence[float]) -> Tensor:
        """(B,) of times from `times_at_fractions`, in the dtype that the others take."""

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """(B, C, h, w) noisy latents."""

    def compute_target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """(B, C, h, w): what the denoiser should predict."""

    def compute_weights(self, loss: LossConfig, times: Tensor) -> Tensor | None:
        """(B,) weights of the errors; None where all are 1."""


def _sample_logit_normal_fractions(
    loss: LossConfig, seed: int, step: int, keys: list[int]
) -> Tensor:
    """(B,) logit-normal fractions (Esser et al. 2024, arXiv 2403.03206, 3.1)."""
    normal = noise.sample_normal(seed, "timestep", step, keys, (1,))[:, 0]
    return torch.sigmoid(loss.logit_mean + loss.logit_std * normal)


class DiffusionProcess:
    """DDPM (Ho et al. 2020, arXiv 2006.11239). Times are timesteps, int64, 0 the least noise."""

    def __init__(self, scheduler: DDPMScheduler) -> None:
        self.scheduler = scheduler
        self._num_timesteps = int(scheduler.config.num_train_timesteps)

    def sample_times(self, loss: LossConfig, seed: int, step: int, keys: list[int]) -> Tensor:
        """Uniform or logit-normal."""
        if loss.timesteps == "uniform":
            return noise.sample_integers(seed, "timestep", step, keys, self._num_timesteps)
        time_fractions = _sample_logit_normal_fractions(loss, seed, step, keys)
        return (time_fractions * self._num_timesteps).long().clamp(max=self._num_timesteps - 1)

    def times_at_fractions(self, fractions: Sequence[float]) -> list[float]:
        """Timesteps, whole numbers."""
        return [int(fraction * self._num_timesteps) for fraction in fractions]

    def to_tensor(self, times: Sequence[float]) -> Tensor:
        """int64."""
        return torch.tensor(times, dtype=torch.int64)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise."""
        noisy_latents: Tensor = self.scheduler.add_noise(latents, noise, times)
        return noisy_latents

    def compute_target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Noise or velocity; raises ConfigError for another prediction type."""
        return compute_target(self.scheduler, latents, noise, times)

    def compute_weights(self, loss: LossConfig, times: Tensor) -> Tensor | None:
        """Min-SNR weights where they are configured."""
        if loss.min_snr_gamma is None:
            return None
        return compute_snr_weights(self.scheduler, times, loss.min_snr_gamma)


class FlowProcess:
    """Flow matching along straight lines (Liu et al. 2022, arXiv 2209.03003).

    Times are sigmas, float32 in (0, 1]: x_sigma = (1 - sigma) x + sigma noise, and the denoiser
    predicts the velocity, noise - x. Training takes one of the scheduler's levels, as diffusers'
    scripts do; they have the scheduler's shift.
    """

    def __init__(
        self, scheduler: FlowMatchEulerDiscreteScheduler, *, preconditions: bool = False
    ) -> None:
        """preconditions: whether errors are those of the image that a velocity leads to

        It is x_sigma - sigma velocity: its squared error is sigma^2 times the velocity's.
        """
        self._preconditions = preconditions
        # Largest first. Copied: sampling sets levels of its own.
        self._sigmas: Tensor = (
            scheduler.sigmas[: int(scheduler.config.num_train_timesteps)].clone().float()
        )

    def sample_times(self, loss: LossConfig, seed: int, step: int, keys: list[int]) -> Tensor:
        """As configured; a `logit_mean` below 0 favours little noise.

        Source of both others: Esser et al. 2024, arXiv 2403.03206, 3.1.
        """
        if loss.timesteps == "logit_normal":
            return self._look_up_sigmas(_sample_logit_normal_fractions(loss, seed, step, keys))
        time_fractions = noise.sample_uniform(seed, "timestep", step, keys)
        if loss.timesteps == "mode":
            mode_shift = torch.cos(math.pi * time_fractions / 2) ** 2 - 1 + time_fractions
            time_fractions = 1 - time_fractions - loss.mode_scale * mode_shift
        return self._look_up_sigmas(time_fractions)

    def _look_up_sigmas(self, fractions: Tensor) -> Tensor:
        num_sigmas = len(self._sigmas)
        sigma_indices = (fractions * num_sigmas).long().clamp(max=num_sigmas - 1)
        return self._sigmas[num_sigmas - 1 - sigma_indices]

    def times_at_fractions(self, fractions: Sequence[float]) -> list[float]:
        """Sigmas."""
        sigmas: list[float] = self._look_up_sigmas(torch.tensor(fractions)).tolist()
        return sigmas

    def to_tensor(self, times: Sequence[float]) -> Tensor:
        """float32."""
        return torch.tensor(times, dtype=torch.float32)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """(1 - sigma) x + sigma noise."""
        sigmas = times.view(-1, 1, 1, 1)
        return (1.0 - sigmas) * latents + sigmas * noise

    def compute_target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """noise - x."""
        return noise - latents

    def compute_weights(self, loss: LossConfig, times: Tensor) -> Tensor | None:
        """As configured.

        Source: diffusers' compute_loss_weighting_for_sd3.
        """
        loss_weights: Tensor | None = None
        if loss.weighting == "sigma_sqrt":
            loss_weights = times**-2.0
        elif loss.weighting == "cosmap":
            loss_weights = 2 / (math.pi * (1 - 2 * times + 2 * times**2))
        if not self._preconditions:
            return loss_weights
        return times**2 if loss_weights is None else times**2 * loss_weights
