"""What a denoiser is told beside noisy latents and their time."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Conditioning:
    """Named tensors with a batch dimension, in the order in which the denoiser takes them.

    Which there are is the family's business: embeddings of the prompt, pooled ones, masks, sizes.
    Token ids, from which a trained text encoder makes them in each step, are kept like this too.
    """

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a name."""
        return self.tensors[name]

    def select(self, rows: Any) -> "Conditioning":
        """Some rows: a slice, or a list of indices."""
        return Conditioning({name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Conditioning":
        """On a device; numbers with a fraction in a dtype, the others as they are."""
        return Conditioning(
            {
                name: tensor.to(device, dtype if tensor.is_floating_point() else None)
                for name, tensor in self.tensors.items()
            }
        )

    def pin_memory(self) -> "Conditioning":
        """In memory from which a GPU copies while the host goes on."""
        return Conditioning({name: tensor.pin_memory() for name, tensor in self.tensors.items()})

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The tensors, in their order."""
        return tuple(self.tensors.values())

    @property
    def row_shapes(self) -> Hashable:
        """Name and shape of each, less the batch dimension: rows of equal ones can be joined."""
        return tuple((name, tuple(tensor.shape[1:])) for name, tensor in self.tensors.items())

    @staticmethod
    def join(items: Sequence["Conditioning"]) -> "Conditioning":
        """All rows, one after the other; their shapes are equal."""
        return Conditioning(
            {name: torch.cat([item[name] for item in items]) for name in items[0].tensors}
        )
