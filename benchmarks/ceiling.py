"""What the machine can do at most, and what a model asks of it."""

import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

SIDE = 1024
COPIED_BYTES = 2**26


def measure_ceilings(repeats: int = 7) -> dict[str, float]:
    """Best rates of float32 matrix products (GFLOP/s) and of copying (GB/s, read and write)."""
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    source_buffer = torch.rand(COPIED_BYTES // 4)
    target_buffer = torch.empty_like(source_buffer)
    matmul_s = _measure_best_s(lambda: torch.mm(a, b), repeats)
    copy_s = _measure_best_s(lambda: target_buffer.copy_(source_buffer), repeats)
    return {
        "matmul_gflops": round(2 * SIDE**3 / matmul_s / 1e9, 1),
        "copy_gb_s": round(2 * COPIED_BYTES / copy_s / 1e9, 2),
    }


def _measure_best_s(work: Callable[[], object], repeats: int) -> float:
    times_s = []
    for _ in range(repeats + 1):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s[1:])


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of `work`, by torch's own count of products and convolutions."""
    with FlopCounterMode(display=False) as flop_counter:
        work()
    return int(flop_counter.get_total_flops())


def count_unet_flops(unet: UNet2DConditionModel, rows: int, side_px: int, factor: int) -> int:
    """Operations of one forward of `rows` images of side_px."""
    unet_config: Any = unet.config
    latent_side = side_px // factor
    x = torch.zeros(rows, unet_config.in_channels, latent_side, latent_side)
    hidden = torch.zeros(rows, 77, unet_config.cross_attention_dim)
    with torch.no_grad():
        return count_flops(lambda: unet(x, torch.zeros(rows), hidden))
