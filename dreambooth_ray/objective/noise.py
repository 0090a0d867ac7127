"""Random numbers by address, not from a shared generator.

Every number is a pure function of (seed, purpose, step, index). It is computed on the CPU,
so that it does not depend on the device.
"""

import torch
from torch import Tensor

from dreambooth_ray.objective.seed_derivation import derive_seed


def make_seeded_generator(seed: int, purpose: str, step: int, index: int) -> torch.Generator:
    """A CPU generator whose state depends on its address alone."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, step, index))


def sample_normal(
    seed: int, purpose: str, step: int, indices: list[int], shape: tuple[int, ...]
) -> Tensor:
    """(len(indices), *shape) float32 standard normal, row j keyed by indices[j]."""
    normal_numbers = [
        torch.randn(shape, generator=make_seeded_generator(seed, purpose, step, i)) for i in indices
    ]
    return torch.stack(normal_numbers)


def sample_integers(seed: int, purpose: str, step: int, indices: list[int], high: int) -> Tensor:
    """(len(indices),) int64 in [0, high), entry j keyed by indices[j]."""
    random_integers = [
        torch.randint(high, (1,), generator=make_seeded_generator(seed, purpose, step, i))
        for i in indices
    ]
    return torch.cat(random_integers)


def sample_uniform(seed: int, purpose: str, step: int, indices: list[int]) -> Tensor:
    """(len(indices),) float32 in [0, 1), entry j keyed by indices[j]."""
    uniform_numbers = [
        torch.rand((1,), generator=make_seeded_generator(seed, purpose, step, i)) for i in indices
    ]
    return torch.cat(uniform_numbers)
