"""Random numbers by address, not from a shared generator.

Every number is a pure function of (seed, purpose, step, index). It is computed on the CPU,
so that it does not depend on the device.
"""

import torch
from torch import Tensor

from dreambooth_ray.objective.address import seed_of


def generator(seed: int, purpose: str, step: int, index: int) -> torch.Generator:
    """A CPU generator whose state depends on its address alone."""
    return torch.Generator().manual_seed(seed_of(seed, purpose, step, index))


def normal(
    seed: int, purpose: str, step: int, indices: list[int], shape: tuple[int, ...]
) -> Tensor:
    """(len(indices), *shape) float32 standard normal, row j keyed by indices[j]."""
    rows = [torch.randn(shape, generator=generator(seed, purpose, step, i)) for i in indices]
    return torch.stack(rows)


def integers(seed: int, purpose: str, step: int, indices: list[int], high: int) -> Tensor:
    """(len(indices),) int64 in [0, high), entry j keyed by indices[j]."""
    samples = [
        torch.randint(high, (1,), generator=generator(seed, purpose, step, i)) for i in indices
    ]
    return torch.cat(samples)


def uniform(seed: int, purpose: str, step: int, indices: list[int]) -> Tensor:
    """(len(indices),) float32 in [0, 1), entry j keyed by indices[j]."""
    samples = [torch.rand((1,), generator=generator(seed, purpose, step, i)) for i in indices]
    return torch.cat(samples)
