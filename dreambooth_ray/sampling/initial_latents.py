"""The initial latents and state of a request.

Legend: C latent channels, h, w latent sides.
"""

import torch
from PIL import Image
from torch import Tensor

from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import TrajectoryState
from dreambooth_ray.sampling.solver_steps import SolverTable
from dreambooth_ray.sampling.vae import LatentCodec, latent_mask


def build_initial_state(
    request: Request,
    shape: tuple[int, int],
    solver_table: SolverTable,
    codec: LatentCodec,
    in_channels: int,
    conditionings: tuple[Conditioning, Conditioning | None],
) -> TrajectoryState:
    """The state from pure noise, or from an image with noise added.

    shape: (h, w)
    in_channels: of the denoiser; above C it is one trained to inpaint
    conditionings: of the prompt and, if it is asked for, of the negative prompt, one row each
    """
    # On the CPU, as diffusers' pipeline does with torch.Generator().manual_seed(seed).
    generator = torch.Generator().manual_seed(request.seed)
    noise = torch.randn((1, codec.channels, *shape), generator=generator)[0]
    sampling_state = TrajectoryState(
        solver_table, noise * solver_table.initial_scale, *conditionings, preview_latents=noise
    )
    size_px = shape[1] * codec.factor, shape[0] * codec.factor
    image = _resize_image(request.image, size_px, Image.Resampling.LANCZOS)
    inpainting_mask = _resize_image(request.mask, size_px, Image.Resampling.NEAREST)
    if image is not None:
        alpha, sigma = solver_table.steps[0].level
        image_latents = codec.encode(image)
        # As in diffusers' pipelines: what is generated anew at full strength begins in pure noise.
        if inpainting_mask is None or request.strength < 1:
            sampling_state.latents = alpha * image_latents + sigma * noise
        if inpainting_mask is not None and in_channels == codec.channels:
            sampling_state.image_latents, sampling_state.noise, sampling_state.mask = (
                image_latents,
                noise,
                latent_mask(inpainting_mask, *shape),
            )
    if in_channels > codec.channels:
        sampling_state.inpainting_channels = _inpainting_channels(
            image, inpainting_mask, shape, codec, size_px
        )
    return sampling_state


def _resize_image(
    image: Image.Image | None, size_px: tuple[int, int], resampling: Image.Resampling
) -> Image.Image | None:
    if image is None or image.size == size_px:
        return image
    return image.resize(size_px, resampling)


def _inpainting_channels(
    image: Image.Image | None,
    mask: Image.Image | None,
    shape: tuple[int, int],
    codec: LatentCodec,
    size_px: tuple[int, int],
) -> Tensor:
    """(1 + C, h, w): the mask and the masked image's latents; without a mask all is generated."""
    mask = mask or Image.new("L", size_px, 255)
    image = image or Image.new("RGB", size_px, (128, 128, 128))
    return torch.cat([latent_mask(mask, *shape), codec.encode(image, hidden=mask)])
