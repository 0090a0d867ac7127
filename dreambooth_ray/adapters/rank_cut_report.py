"""What a lower rank costs, layer by layer and over all."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from dreambooth_ray.adapters.low_rank import CutProduct


@dataclass(frozen=True)
class RankCutReport:
    """Relative errors in the Frobenius norm of what an adapter adds.

    error: over all layers together; by_layer: of each
    """

    error: float
    by_layer: Mapping[str, float]

    @classmethod
    def of(cls, products: Mapping[str, CutProduct]) -> "RankCutReport":
        """Of the layers' products by name."""
        whole_squared_norm = sum(product.whole for product in products.values())
        lost_squared_norm = sum(product.lost for product in products.values())
        error_by_layer = {name: product.error for name, product in products.items()}
        return cls(
            sqrt(lost_squared_norm / whole_squared_norm) if whole_squared_norm else 0.0,
            error_by_layer,
        )

    def lines(self) -> list[str]:
        """As the verbs print it."""
        return [
            *(f"{error:.6f}  {name}" for name, error in self.by_layer.items()),
            f"{self.error:.6f}  all {len(self.by_layer)} layers",
        ]
