"""The frozen VAE's posterior of an image, encoded once and sampled at every step."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor


@torch.no_grad()
def encode_posterior(vae: AutoencoderKL, image: Image.Image, flip: bool) -> Tensor:
    """(F, 2, C, h, w) float32 on the CPU: scaled mean and std, as is and, if `flip`, mirrored."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    views = torch.stack([pixels, pixels.flip(2)] if flip else [pixels])
    posterior = vae.encode(views.to(vae.device, vae.dtype)).latent_dist
    mean_and_std = torch.stack([posterior.mean, posterior.std], dim=1)
    return (mean_and_std * float(vae.config.scaling_factor)).float().cpu()
