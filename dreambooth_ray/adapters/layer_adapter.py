"""What one adapter does to one layer's weight.

Legend: r rank, O and I a layer's output and flattened input.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerAdapter:
    """A product of factors, times a scale, that is added to a weight; DoRA's magnitudes beside it.

    factors: by the roles of `file_keys`; rows: (begin, end) of the product that are the layer's,
        in the layer's order, None for all
    magnitude: of the sum's rows (axis 0) or columns (axis 1), None for none
    """

    factors: Mapping[str, Tensor]
    scale: float = 1.0
    rows: tuple[tuple[int, int], ...] | None = None
    magnitude: Tensor | None = None
    magnitude_axis: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether it is the product of two matrices, and adds it."""
        return self.factors.keys() == {"down", "up"} and self.magnitude is None

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [*self.factors.values(), *([] if self.magnitude is None else [self.magnitude])]

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """(r, I) and (O, r), the second scaled: what a plain adapter adds is their product."""
        down = self.factors["down"].flatten(1)
        up = self._take_rows(self.factors["up"].flatten(1))
        return down, up * self.scale

    def to(self, device: torch.device | str) -> "LayerAdapter":
        """With its tensors on a device."""
        return LayerAdapter(
            {role: factor.to(device) for role, factor in self.factors.items()},
            self.scale,
            self.rows,
            None if self.magnitude is None else self.magnitude.to(device),
            self.magnitude_axis,
        )

    def compute_delta(self, weight: Tensor) -> Tensor:
        """What it adds to a weight, in the weight's shape, float32."""
        product = self._take_rows(compute_product(self.factors)).reshape(weight.shape) * self.scale
        if self.magnitude is None:
            return product
        base_weight = weight.float()
        adapted_weight = base_weight + product
        normed_axes = [axis for axis in range(weight.dim()) if axis != self.magnitude_axis]
        weight_norms = torch.linalg.vector_norm(adapted_weight, dim=normed_axes, keepdim=True)
        magnitude_ratios = self.magnitude.float().reshape(weight_norms.shape) / weight_norms
        return torch.as_tensor(adapted_weight * magnitude_ratios - base_weight)

    def _take_rows(self, product: Tensor) -> Tensor:
        if self.rows is None:
            return product
        return torch.cat([product[begin:end] for begin, end in self.rows])


def add_deltas_to_weight(weight: Tensor, uses: Iterable[tuple[LayerAdapter, float]]) -> Tensor:
    """A weight with several adapters added, each times its weight; float32."""
    summed_weight = weight.float().clone()
    for adapter, adapter_weight in uses:
        summed_weight += adapter_weight * adapter.compute_delta(weight)
    return summed_weight


def compute_product(factors: Mapping[str, Tensor]) -> Tensor:
    """(O, I) of the factors that the roles of `file_keys` name; float32."""
    float_factors = {role: factor.float() for role, factor in factors.items()}
    if "embedding_down" in float_factors:
        return (float_factors["embedding_up"] @ float_factors["embedding_down"]).T
    if "mid" in float_factors:
        kernel = torch.einsum(
            "op,pqkl,qi->oikl",
            float_factors["up"].flatten(1),
            float_factors["mid"],
            float_factors["down"].flatten(1),
        )
        return kernel.flatten(1)
    if "down" in float_factors:
        return float_factors["up"].flatten(1) @ float_factors["down"].flatten(1)
    if "hada_w1_a" in float_factors:
        return _multiply_half(float_factors, 1) * _multiply_half(float_factors, 2)
    first_kronecker = float_factors.get("lokr_w1")
    first_kronecker = (
        float_factors["lokr_w1_a"] @ float_factors["lokr_w1_b"]
        if first_kronecker is None
        else first_kronecker
    )
    second_kronecker = _second_kronecker(float_factors)
    if second_kronecker.dim() == 4:
        first_kronecker = first_kronecker[:, :, None, None]
    return torch.kron(first_kronecker, second_kronecker).flatten(1)


def _multiply_half(factors: Mapping[str, Tensor], number: int) -> Tensor:
    """One of LoHa's two products."""
    left_factor, right_factor = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
    kernel = factors.get(f"hada_t{number}")
    if kernel is None:
        return left_factor @ right_factor
    return torch.einsum("pqkl,po,qi->oikl", kernel, left_factor, right_factor).flatten(1)


def _second_kronecker(factors: Mapping[str, Tensor]) -> Tensor:
    if "lokr_w2" in factors:
        return factors["lokr_w2"]
    left_factor, right_factor = factors["lokr_w2_a"], factors["lokr_w2_b"]
    if "lokr_t2" in factors:
        # torch.kron takes views.
        return torch.einsum(
            "pqkl,po,qi->oikl", factors["lokr_t2"], left_factor, right_factor
        ).contiguous()
    return (left_factor @ right_factor.flatten(1)).reshape(
        left_factor.shape[0], *right_factor.shape[1:]
    )


def find_layer(network: nn.Module, layer: str) -> nn.Module | None:
    """A module by a name without levels that releases of transformers differ on."""
    for name_prefix in ("", "text_model.", "model.", "language_model.", "model.language_model."):
        try:
            return network.get_submodule(f"{name_prefix}{layer}")
        except AttributeError:
            continue
    return None
