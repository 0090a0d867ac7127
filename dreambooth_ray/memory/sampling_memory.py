"""How much memory an image takes, measured before one is generated.

The forward passes run on tensors without contents (torch's FakeTensorMode): shapes and
lifetimes are real, so the peak is what the true pass would allocate, at no cost.
"""

import os
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from dreambooth_ray.compat.torch_memory import measure_peak_bytes
from dreambooth_ray.errors import CapacityError

_SHARE_OF_MEMORY = 0.8
_MIB = 2**20


@dataclass(frozen=True)
class SamplingFootprint:
    """Bytes: of the weights, of a UNet row a latent pixel, of a decoded image a latent pixel."""

    weights_bytes: int
    row_bytes: float
    decode_bytes: float

    def needed_bytes(self, area: int, rows: int) -> int:
        """For one forward of `rows` at `area` latent pixels, and one image's decoding."""
        return int(self.weights_bytes + area * max(rows * self.row_bytes, self.decode_bytes))


_footprint_cache: dict[str, SamplingFootprint] = {}


def measure_footprint(
    unet: UNet2DConditionModel, vae: AutoencoderKL, tokens: int
) -> SamplingFootprint:
    """Measure one row at the model's own size, UNet and decoder; cached by kind of model."""
    dtypes = unet.dtype, vae.dtype
    model_key = f"{unet.config} {vae.config} {tokens} {dtypes} {unet.device.type}"
    if model_key not in _footprint_cache:
        _footprint_cache[model_key] = _run_measurement(unet, vae, tokens)
    return _footprint_cache[model_key]


def _run_measurement(
    unet: UNet2DConditionModel, vae: AutoencoderKL, tokens: int
) -> SamplingFootprint:
    side = int(unet.config.sample_size or 64)
    weight, vae_weight = unet.conv_in.weight, next(vae.parameters())

    def forward() -> None:
        x = torch.empty(
            1, unet.config.in_channels, side, side, dtype=weight.dtype, device=weight.device
        )
        hidden = torch.empty(
            1, tokens, unet.config.cross_attention_dim, dtype=weight.dtype, device=weight.device
        )
        unet(x, torch.zeros(1, device=weight.device), hidden)

    def decode() -> None:
        vae.disable_tiling()
        z = torch.empty(
            1, vae.config.latent_channels, side, side,
            dtype=vae_weight.dtype, device=vae_weight.device,
        )  # fmt: skip
        vae.decode(z)

    weights = sum(p.numel() * p.element_size() for part in (unet, vae) for p in part.parameters())
    area = side * side
    return SamplingFootprint(
        weights, measure_peak_bytes(unet, forward) / area, measure_peak_bytes(vae, decode) / area
    )


class MemoryBudget:
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
        self.limit_bytes = limit_bytes or _memory_bytes(device, footprint.weights_bytes)

    def max_rows(self, area: int) -> int:
        """UNet rows of `area` latent pixels that fit at once."""
        free_bytes = self.limit_bytes - self.footprint.weights_bytes
        if area * min(1.0, self._tiled_area / area) * self.footprint.decode_bytes > free_bytes:
            return 0
        return max(0, int(free_bytes / (area * self.footprint.row_bytes)))

    def max_decoded(self, area: int) -> int:
        """Images of `area` latent pixels that can be decoded at once; one at least."""
        free_bytes = self.limit_bytes - self.footprint.weights_bytes
        image_bytes = min(area, self._tiled_area) * self.footprint.decode_bytes
        return max(1, int(free_bytes / image_bytes))

    def check_request(self, width_px: int, height_px: int, factor: int, rows: int) -> None:
        """raises CapacityError if a single request does not fit, saying what would."""
        area = (width_px // factor) * (height_px // factor)
        if self.max_rows(area) >= rows:
            return
        needed_bytes = self.footprint.needed_bytes(area, rows)
        largest_side = self._largest_side(factor, rows)
        suggestion = (
            f"up to {largest_side}x{largest_side} would fit"
            if largest_side
            else "no image would fit beside the weights; raise the limit"
        )
        raise CapacityError(
            f"width_px={width_px}, height_px={height_px} needs about {needed_bytes // _MIB} MiB "
            f"and the limit is {self.limit_bytes // _MIB} MiB; {suggestion}"
        )

    def _largest_side(self, factor: int, rows: int) -> int:
        side = 0
        while side < 16384 and self.max_rows(((side + 64) // factor) ** 2) >= rows:
            side += 64
        return side


def _memory_bytes(device: torch.device, weights_bytes: int) -> int:
    """What a model may use in all. On a GPU its weights are there already, and not free."""
    if device.type == "cuda":
        free_bytes = torch.cuda.mem_get_info(device)[0]
        # torch keeps what it has freed, and gives it out again.
        free_bytes += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(weights_bytes + free_bytes * _SHARE_OF_MEMORY)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE_OF_MEMORY)
