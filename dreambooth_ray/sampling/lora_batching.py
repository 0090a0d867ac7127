"""Many LoRA adapters in one forward: each row of a layer's input goes through its own.

peft mixes adapters too: layer by layer, adapter by adapter, it takes the rows of each out and
puts them back. Here a layer does all its rows in two batched products.

Legend: R rows, T tokens, I, O features in and out, r the largest rank among the adapters.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

# Of each row: the adapter's name, or None for the network without one.
Names = tuple[str | None, ...]


class LoraBatch:
    """The LoRA layers of a network as peft has made them; made anew when adapters come or go."""

    def __init__(self, network: nn.Module) -> None:
        found = [(n, m) for n, m in network.named_modules() if isinstance(m, LoraLayer)]
        self._layers = [_Layer(name, layer) for name, layer in found]
        self._names: Names = ()

    def can(self, names: Names) -> bool:
        """Whether these adapters are plain LoRA of linear layers alone."""
        wanted = set(names) - {None}
        return all(layer.can(wanted) for layer in self._layers)

    def weights(self) -> list[Tensor]:
        """Of all layers that have any for the rows of now, in the order that `give` takes."""
        return [weight for layer in self._layers for weight in layer.weights or ()]

    def pattern(self) -> tuple[str, ...]:
        """Which layers those are, by name."""
        return tuple(layer.name for layer in self._layers if layer.weights is not None)

    def give(self, weights: Sequence[Tensor]) -> None:
        """Take these instead, as `weights` lists them."""
        rest = iter(weights)
        for layer in self._layers:
            if layer.weights is not None:
                layer.weights = next(rest), next(rest)

    @contextmanager
    def rows(self, names: Names) -> Iterator[None]:
        """Inside, row i of every layer's input goes through the adapter names[i]."""
        if names != self._names:
            # A batch stays as it is for some steps: what is put together is kept.
            for layer in self._layers:
                layer.gather(names)
            self._names = names
        for layer in self._layers:
            layer.is_on = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer.is_on = False


class _Layer:
    """Stands before the forward of one of peft's layers."""

    def __init__(self, name: str, layer: Any) -> None:
        self.name, self._layer, self.is_on = name, layer, False
        self._alone = functools.partial(type(layer).forward, layer)
        self.weights: tuple[Tensor, Tensor] | None = None
        self._parts: dict[tuple[str | None, int], tuple[Tensor, Tensor]] = {}
        layer.forward = self

    def can(self, names: set[str | None]) -> bool:
        here = names & set(self._layer.lora_A)
        if not here:
            return not names & set(self._layer.lora_embedding_A)
        linear = isinstance(self._layer, Linear) and isinstance(self._layer.base_layer, nn.Linear)
        biased = any(self._layer.lora_bias[name] for name in here)
        return linear and not biased and not here & set(self._layer.lora_variant)

    @torch.no_grad()
    def gather(self, names: Names) -> None:
        """Puts (R, I, r) and (R, r, O) weights together; None where no row has any here."""
        here = {name for name in names if name in self._layer.lora_A}
        if not here:
            self.weights = None
            return
        rank = max(self._layer.r[name] for name in here)
        parts = [self._padded(name if name in here else None, rank) for name in names]
        self.weights = torch.stack([d for d, _ in parts]), torch.stack([u for _, u in parts])

    def _padded(self, name: str | None, rank: int) -> tuple[Tensor, Tensor]:
        """(I, rank) and (rank, O) of one adapter, kept: batches come anew at every few steps."""
        if (name, rank) not in self._parts:
            like, layer = self._layer.base_layer.weight, self._layer
            down = like.new_zeros(layer.in_features, rank)
            up = like.new_zeros(rank, layer.out_features)
            if name is not None:
                r = layer.r[name]
                down[:, :r] = layer.lora_A[name].weight.T
                up[:r] = layer.lora_B[name].weight.T * layer.scaling[name]
            self._parts[name, rank] = down, up
        return self._parts[name, rank]

    def __call__(self, x: Tensor, *inputs: Any, **options: Any) -> Tensor:
        """x: (R, ..., I); returns (R, ..., O)."""
        if not self.is_on:
            return torch.as_tensor(self._alone(x, *inputs, **options))
        base = torch.as_tensor(self._layer.base_layer(x, *inputs, **options))
        if self.weights is None:
            return base
        down, up = self.weights
        # By shape, not by len, which a recording would take for the same number for ever.
        low = torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), down)
        tokens = base.reshape(base.shape[0], -1, base.shape[-1])
        return torch.baddbmm(tokens, low, up).reshape(base.shape)
