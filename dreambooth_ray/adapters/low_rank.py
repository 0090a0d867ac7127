"""Products of two thin matrices, cut to a lower rank, and what of them that loses.

Legend: r rank, O and I a layer's output and flattened input, k the new rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from dreambooth_ray.adapters.layer_adapter import LayerAdapter


@dataclass(frozen=True)
class CutProduct:
    """down: (k, I); up: (O, k); lost, whole: squared Frobenius norms of what went, and of all."""

    down: Tensor
    up: Tensor
    lost: float
    whole: float

    @property
    def error(self) -> float:
        """Relative, in the Frobenius norm."""
        return sqrt(self.lost / self.whole) if self.whole else 0.0


def cut_product(down: Tensor, up: Tensor, rank: int) -> CutProduct:
    """The best approximation (Eckart and Young 1936) of the product of (r, I) and (O, r)."""
    if rank >= down.shape[0]:
        squared_norm = float((_gram(down.double()) * _gram(up.double().T)).sum())
        return CutProduct(down.float(), up.float(), 0.0, max(squared_norm, 0.0))
    # The factors' triangles have the product's singular values, and are small.
    left_basis, left_triangle = torch.linalg.qr(up.double())
    right_basis, right_triangle = torch.linalg.qr(down.double().T)
    inner_left_vectors, singular_values, inner_right_vectors = torch.linalg.svd(
        left_triangle @ right_triangle.T
    )
    return _cut_singular_vectors(
        left_basis @ inner_left_vectors, singular_values, inner_right_vectors @ right_basis.T, rank
    )


def cut_matrix(matrix: Tensor, rank: int) -> CutProduct:
    """As `cut_product`, of an (O, I) matrix."""
    left_vectors, singular_values, right_vectors = torch.linalg.svd(
        matrix.double(), full_matrices=False
    )
    return _cut_singular_vectors(left_vectors, singular_values, right_vectors, rank)


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _cut_singular_vectors(
    left_vectors: Tensor, singular_values: Tensor, right_vectors: Tensor, rank: int
) -> CutProduct:
    new_rank = min(rank, len(singular_values))
    # Half of each value in each factor, so that neither overflows half precision.
    singular_value_roots = singular_values[:new_rank].sqrt()
    squared_singular_values = singular_values.square()
    return CutProduct(
        (singular_value_roots[:, None] * right_vectors[:new_rank]).float(),
        (left_vectors[:, :new_rank] * singular_value_roots).float(),
        float(squared_singular_values[new_rank:].sum()),
        float(squared_singular_values.sum()),
    )


def join_products(uses: Sequence[tuple[LayerAdapter, float]]) -> tuple[Tensor, Tensor]:
    """(sum of ranks, I) and (O, sum of ranks) of plain adapters, whose product is their sum."""
    factors = [(*adapter.low_rank(), weight) for adapter, weight in uses]
    return (
        torch.cat([down.float() for down, _, _ in factors]),
        torch.cat([up.float() * weight for _, up, weight in factors], dim=1),
    )
