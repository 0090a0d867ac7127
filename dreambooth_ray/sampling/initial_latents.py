"""The state a request starts from.

Legend: C latent channels, h, w latent sides, T tokens, D embedding width.
"""

import torch
from PIL import Image
from torch import Tensor

from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import SamplingState
from dreambooth_ray.sampling.solvers import Table
from dreambooth_ray.sampling.vae import LatentCodec, latent_mask, without_masked


def initial_state(
    request: Request,
    shape: tuple[int, int],
    table: Table,
    decoder: LatentCodec,
    in_channels: int,
    embedded: tuple[Tensor, Tensor],
) -> SamplingState:
    """From noise, or from an image part of the way to noise.

    shape:       (h, w)
    in_channels: of the UNet; above C it is one trained to inpaint
    embedded:    (T, D) of the prompt and of the negative prompt
    """
    # Drawn on the CPU as diffusers' pipeline does with torch.Generator().manual_seed(seed).
    generator = torch.Generator().manual_seed(request.seed)
    noise = torch.randn((1, decoder.channels, *shape), generator=generator)[0]
    state = SamplingState(table, noise * table.initial_scale, *embedded, seen=noise)
    size_px = shape[1] * decoder.factor, shape[0] * decoder.factor
    image = _sized(request.image, size_px, Image.Resampling.LANCZOS)
    mask = _sized(request.mask, size_px, Image.Resampling.NEAREST)
    if image is not None:
        alpha, sigma = table.steps[0].level
        clean = decoder.latents(image)
        state.x = alpha * clean + sigma * noise
        if mask is not None and in_channels == decoder.channels:
            state.clean, state.noise, state.mask = clean, noise, latent_mask(mask, *shape)
    if in_channels > decoder.channels:
        state.extra = _inpainting_channels(image, mask, shape, decoder, size_px)
    return state


def _sized(
    image: Image.Image | None, size_px: tuple[int, int], resampling: Image.Resampling
) -> Image.Image | None:
    if image is None or image.size == size_px:
        return image
    return image.resize(size_px, resampling)


def _inpainting_channels(
    image: Image.Image | None,
    mask: Image.Image | None,
    shape: tuple[int, int],
    decoder: LatentCodec,
    size_px: tuple[int, int],
) -> Tensor:
    """(1 + C, h, w): the mask and the latents of what is kept; all is new without a mask."""
    mask = mask or Image.new("L", size_px, 255)
    image = image or Image.new("RGB", size_px, (128, 128, 128))
    kept = decoder.latents(without_masked(image, mask))
    return torch.cat([latent_mask(mask, *shape), kept])
