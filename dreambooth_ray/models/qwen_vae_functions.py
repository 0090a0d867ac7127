"""Latents of Qwen-Image's VAE, which is one of videos: an image is a video of one frame.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels.
"""

from typing import Any

import torch
from torch import Tensor

from dreambooth_ray.models.flow_functions import FlowFunctions
from dreambooth_ray.models.qwen_vae_checks import compute_qwen_vae_factor


class QwenVAEFunctions(FlowFunctions):
    """Latents have mean 0 and deviation 1 by the VAE's statistics."""

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `ModelFunctions.encode_images`."""
        posterior = vae.encode(pixels[:, :, None]).latent_dist
        latent_mean, deviation = _read_statistics(vae, pixels)
        return (posterior.mean[:, :, 0] - latent_mean) / deviation, posterior.std[
            :, :, 0
        ] / deviation

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `ModelFunctions.decode`."""
        latent_mean, deviation = _read_statistics(vae, latents)
        video_latents = (latents * deviation + latent_mean)[:, :, None]
        return torch.as_tensor(vae.decode(video_latents, return_dict=False)[0][:, :, 0])

    def latent_channels(self, vae: Any) -> int:
        """The VAE's z_dim."""
        return int(vae.config.z_dim)

    def latent_factor(self, vae: Any) -> int:
        """Of its blocks that halve images."""
        return compute_qwen_vae_factor(vae.config)


def _read_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) mean and deviation, like `latents`."""
    mean, deviation = (
        torch.tensor(channel_statistics).view(1, -1, 1, 1).to(latents)
        for channel_statistics in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation
