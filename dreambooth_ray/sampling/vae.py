"""Latents to images and back, and a cheap preview of latents.

Legend: B batch, C latent channels, h, w latent sides, f pixels a latent spans each way.
"""

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dreambooth_ray.models.components import Components

TILED_ABOVE_PX = 1024
_PROBES = 12


class LatentCodec:
    """The VAE as the engine calls it; tiled above TILED_ABOVE_PX a side."""

    def __init__(self, parts: Components) -> None:
        self._vae, self._functions = parts.vae, parts.functions
        self.factor = self._functions.latent_factor(self._vae)
        self.channels = self._functions.latent_channels(self._vae)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """RGB images of (B, C, h, w) latents, decoded in one batch."""
        self._set_tiling(max(latents.shape[-2:]) * self.factor)
        return _to_images(self._decode_pixels(latents))

    def _set_tiling(self, side_px: int) -> None:
        if side_px > TILED_ABOVE_PX:
            self._vae.enable_tiling()
        else:
            self._vae.disable_tiling()

    def _decode_pixels(self, latents: Tensor) -> Tensor:
        weight = next(self._vae.parameters())
        latents = latents.to(weight.device, weight.dtype)
        return self._functions.decode(self._vae, latents).float()

    @torch.no_grad()
    def encode(self, image: Image.Image, hidden: Image.Image | None = None) -> Tensor:
        """(C, h, w) float32: the mean of the posterior, as the denoiser takes it.

        hidden: a mask of its size; where that is white all colours are 0, the middle, as UNets
            with channels for a masked image were trained
        """
        weight = next(self._vae.parameters())
        pixels = _to_pixels(image)
        if hidden is not None:
            pixels *= 1 - _to_binary(hidden)
        pixels = pixels.to(weight.device, weight.dtype)
        self._set_tiling(max(image.size))
        mean, _ = self._functions.encode_images(self._vae, pixels[None])
        return mean[0].float().cpu()

    def decode_preview(self, latents: Tensor) -> Image.Image:
        """A rough RGB image of (C, h, w) latents at 1/f of the size, then enlarged.

        One matrix product: colours are a linear map of latents, fitted once to the VAE.
        """
        colour_matrix, colour_offset = self._preview_weights
        preview_pixels = (
            torch.einsum("rc,chw->rhw", colour_matrix, latents.float().cpu())
            + colour_offset[:, None, None]
        )
        small_image = _to_images(preview_pixels[None])[0]
        size_px = small_image.width * self.factor, small_image.height * self.factor
        return small_image.resize(size_px, Image.Resampling.BICUBIC)

    @functools.cached_property
    def _preview_weights(self) -> tuple[Tensor, Tensor]:
        """(3, C) and (3,): least squares from smooth random latents to their mean colours."""
        generator = torch.Generator().manual_seed(0)
        coarse_latents = torch.randn(_PROBES, self.channels, 3, 3, generator=generator)
        probe_side = 8
        probe_latents = F.interpolate(
            coarse_latents, (probe_side, probe_side), mode="bicubic", align_corners=True
        )
        with torch.no_grad():
            pixels = F.avg_pool2d(self._decode_pixels(probe_latents).cpu(), self.factor)
        latent_vectors = probe_latents.permute(0, 2, 3, 1).reshape(-1, self.channels).double()
        latent_vectors = torch.cat(
            [latent_vectors, torch.ones(len(latent_vectors), 1, dtype=torch.float64)], dim=1
        )
        pixel_colours = pixels.permute(0, 2, 3, 1).reshape(-1, 3).double()
        least_squares_solution = torch.linalg.lstsq(latent_vectors, pixel_colours).solution.float()
        return least_squares_solution[:-1].T.contiguous(), least_squares_solution[-1]


def latent_mask(mask: Image.Image, height: int, width: int) -> Tensor:
    """(1, height, width) float32 at latent size: 1 where white, to be generated."""
    return F.interpolate(_to_binary(mask)[None], (height, width), mode="nearest")[0]


def _to_binary(mask: Image.Image) -> Tensor:
    """(1, H, W) float32: 1 where white."""
    grey_mask = torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32) / 255)
    return (grey_mask[None] >= 0.5).float()


def _to_pixels(image: Image.Image) -> Tensor:
    """(3, H, W) float32 from -1 to 1."""
    pixel_values: Any = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixel_values).permute(2, 0, 1) / 127.5 - 1


def _to_images(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) from -1 to 1, clamped, to images; one copy to the host, of bytes."""
    pixel_values = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    pixel_bytes = (pixel_values * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(one) for one in pixel_bytes]
