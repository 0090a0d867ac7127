"""How much memory an image takes, measured before one is generated.

The forward passes run on tensors without contents (torch's FakeTensorMode): shapes and
lifetimes are real, so the peak is what the true pass would allocate, at no cost.
"""

import os
from dataclasses import dataclass

import torch

from dreambooth_ray.compat.torch_peak_memory import measure_peak_bytes
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.models.components import Components

_SHARE_OF_MEMORY = 0.8
_MIB = 2**20


@dataclass(frozen=True)
class SamplingFootprint:
    """Bytes: of the weights; a latent pixel, of a row of a forward and of a decoded image."""

    weights_bytes: int
    row_bytes: float
    decode_bytes: float

    def needed_bytes(self, area: int, rows: int) -> int:
        """For one forward of `rows` at `area` latent pixels, and one image's decoding."""
        return int(self.weights_bytes + area * max(rows * self.row_bytes, self.decode_bytes))


_footprint_cache: dict[str, SamplingFootprint] = {}


def measure_sampling_footprint(parts: Components) -> SamplingFootprint:
    """Measure one row at the model's own size, denoiser and decoder; cached by kind of model."""
    denoiser, vae = parts.denoiser, parts.vae
    dtypes = denoiser.dtype, vae.dtype
    cache_key = f"{denoiser.config} {vae.config} {dtypes} {denoiser.device.type}"
    if cache_key not in _footprint_cache:
        _footprint_cache[cache_key] = _measure_uncached_footprint(parts)
    return _footprint_cache[cache_key]


def _measure_uncached_footprint(parts: Components) -> SamplingFootprint:
    denoiser, vae, model_functions = parts.denoiser, parts.vae, parts.functions
    side_px = model_functions.default_side(parts)
    latent_side = side_px // model_functions.latent_factor(vae)
    denoiser_weight, vae_weight = next(denoiser.parameters()), next(vae.parameters())
    conditioning = model_functions.example_conditioning(parts, 1, side_px)

    def run_denoiser() -> None:
        num_channels = model_functions.in_channels(denoiser, vae)
        x = torch.empty(
            1,
            num_channels,
            latent_side,
            latent_side,
            dtype=denoiser_weight.dtype,
            device=denoiser_weight.device,
        )
        timestep = torch.zeros(1, device=denoiser_weight.device)
        device_conditioning = conditioning.to(denoiser_weight.device, denoiser_weight.dtype)
        model_functions.denoiser_function(denoiser)(x, timestep, *device_conditioning.values)

    def run_decoder() -> None:
        vae.disable_tiling()
        num_channels = model_functions.latent_channels(vae)
        model_functions.decode(
            vae,
            torch.empty(
                1,
                num_channels,
                latent_side,
                latent_side,
                dtype=vae_weight.dtype,
                device=vae_weight.device,
            ),
        )

    weights_bytes = sum(
        p.numel() * p.element_size() for part in (denoiser, vae) for p in part.parameters()
    )
    latent_area = latent_side * latent_side
    return SamplingFootprint(
        weights_bytes,
        measure_peak_bytes(denoiser, run_denoiser) / latent_area,
        measure_peak_bytes(vae, run_decoder) / latent_area,
    )


class SamplingMemoryBudget:
    """Which requests fit into a memory limit."""

    def __init__(
        self,
        footprint: SamplingFootprint,
        limit_bytes: int | None,
        device: torch.device,
        tiled_area: int,
    ) -> None:
        """tiled_area: latent pixels above which decoding is tiled and takes no more than there."""
        self.footprint, self._tiled_area = footprint, tiled_area
        self.limit_bytes = limit_bytes or _compute_usable_memory_bytes(
            device, footprint.weights_bytes
        )

    def max_rows(self, area: int) -> int:
        """Rows of a forward of `area` latent pixels that fit at once."""
        free_bytes = self.limit_bytes - self.footprint.weights_bytes
        if area * min(1.0, self._tiled_area / area) * self.footprint.decode_bytes > free_bytes:
            return 0
        return max(0, int(free_bytes / (area * self.footprint.row_bytes)))

    def max_decoded_images(self, area: int) -> int:
        """Images of `area` latent pixels that can be decoded at once; one at least."""
        free_bytes = self.limit_bytes - self.footprint.weights_bytes
        decode_bytes_per_image = min(area, self._tiled_area) * self.footprint.decode_bytes
        return max(1, int(free_bytes / decode_bytes_per_image))

    def check_request_fits(self, width_px: int, height_px: int, factor: int, rows: int) -> None:
        """raises CapacityError if a single request does not fit, saying what would."""
        latent_area = (width_px // factor) * (height_px // factor)
        if self.max_rows(latent_area) >= rows:
            return
        needed_bytes = self.footprint.needed_bytes(latent_area, rows)
        largest_side = self._largest_side(factor, rows)
        size_suggestion = (
            f"up to {largest_side}x{largest_side} would fit"
            if largest_side
            else "no image would fit beside the weights; raise the limit"
        )
        raise CapacityError(
            f"width_px={width_px}, height_px={height_px} needs about {needed_bytes // _MIB} MiB "
            f"and the limit is {self.limit_bytes // _MIB} MiB; {size_suggestion}"
        )

    def _largest_side(self, factor: int, rows: int) -> int:
        side_px = 0
        while side_px < 16384 and self.max_rows(((side_px + 64) // factor) ** 2) >= rows:
            side_px += 64
        return side_px


def _compute_usable_memory_bytes(device: torch.device, weights_bytes: int) -> int:
    """What a model may use in all. On a GPU its weights are there already, and not free."""
    if device.type == "cuda":
        free_bytes = torch.cuda.mem_get_info(device)[0]
        # torch keeps what it has freed, and gives it out again.
        free_bytes += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(weights_bytes + free_bytes * _SHARE_OF_MEMORY)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE_OF_MEMORY)
