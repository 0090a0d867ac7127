"""The frozen VAE's posterior of an image, encoded once and sampled at every step."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth_ray.models.components import Components


@torch.no_grad()
def encode_posterior(parts: Components, image: Image.Image, flip: bool) -> Tensor:
    """(F, 2, C, h, w) float32 on the CPU: mean and std, as the denoiser takes latents.

    F: as is and, if `flip`, mirrored
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    image_and_mirror = torch.stack([pixels, pixels.flip(2)] if flip else [pixels])
    vae = parts.vae
    mean, std = parts.functions.encode_images(vae, image_and_mirror.to(vae.device, vae.dtype))
    return torch.stack([mean, std], dim=1).float().cpu()
