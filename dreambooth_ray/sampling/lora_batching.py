"""Many LoRA adapters in one forward: each row of a layer's input goes through its own.

peft mixes adapters too: for each layer and adapter it copies the rows out and back. Here a
layer computes all its rows in two batched products.

Legend: R rows, T tokens, I, O features in and out, r the largest rank among the adapters.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_ray.compat.peft import (
    has_adapter,
    is_plain_lora,
    list_lora_layers,
    lora_rank,
    lora_weights,
)

# Of each row: the adapter's name, or None for the network without one.
AdapterNames = tuple[str | None, ...]


class LoraBatch:
    """The LoRA layers that peft put into a network; built again when adapters come or go."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = [_BatchedLayer(name, m) for name, m in list_lora_layers(network)]
        self._names: AdapterNames = ()

    def supports(self, names: AdapterNames) -> bool:
        """Whether these adapters are plain LoRA of linear layers alone."""
        adapter_names = set(names) - {None}
        return all(layer.supports(adapter_names) for layer in self._layers)

    def weights(self) -> list[Tensor]:
        """Weights of all layers with adapters for the current rows."""
        return [weight for layer in self._layers for weight in layer.weights or ()]

    def active_layers(self) -> tuple[str, ...]:
        """The names of those layers."""
        return tuple(layer.name for layer in self._layers if layer.weights is not None)

    def replace_weights(self, weights: Sequence[Tensor]) -> None:
        """Use these weights instead, in the order of `weights()`.

        A trace keeps every tensor that it meets as a constant, unless it is one of its inputs. So
        weights go in as inputs and are put back here: one trace then serves whichever adapters.
        """
        replacements = iter(weights)
        for layer in self._layers:
            if layer.weights is not None:
                layer.weights = next(replacements), next(replacements)

    @contextmanager
    def route_rows(self, names: AdapterNames) -> Iterator[None]:
        """Inside, row i of every layer's input goes through the adapter names[i]."""
        if names != self._names:
            # A batch stays the same for some steps, so its stacked weights are reused.
            for layer in self._layers:
                layer.stack_weights(names)
            self._names = names
        for layer in self._layers:
            layer.is_on = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer.is_on = False


class _BatchedLayer:
    """Replaces the forward of one of peft's layers."""

    def __init__(self, name: str, layer: Any) -> None:
        self.name, self._layer, self.is_on = name, layer, False
        # By its class: `layer.forward` may be the wrapper of an earlier LoraBatch, which is built
        # anew whenever adapters come or go.
        self._original_forward = functools.partial(type(layer).forward, layer)
        self.weights: tuple[Tensor, Tensor] | None = None
        self._padded_weights: dict[tuple[str | None, int], tuple[Tensor, Tensor]] = {}
        layer.forward = self

    def supports(self, names: set[str | None]) -> bool:
        return is_plain_lora(self._layer, names)

    @torch.no_grad()
    def stack_weights(self, names: AdapterNames) -> None:
        """Stacks weights to (R, I, r) and (R, r, O); None where no row has any here."""
        layer_names = {name for name in names if name and has_adapter(self._layer, name)}
        if not layer_names:
            self.weights = None
            return
        rank = max(lora_rank(self._layer, name) for name in layer_names)
        padded_weights = [
            self._pad_weights(name if name in layer_names else None, rank) for name in names
        ]
        self.weights = (
            torch.stack([d for d, _ in padded_weights]),
            torch.stack([u for _, u in padded_weights]),
        )

    def _pad_weights(self, name: str | None, rank: int) -> tuple[Tensor, Tensor]:
        """(I, rank) and (rank, O) of one adapter, cached: the batch changes every few steps."""
        if (name, rank) not in self._padded_weights:
            like, layer = self._layer.base_layer.weight, self._layer
            down = like.new_zeros(layer.in_features, rank)
            up = like.new_zeros(rank, layer.out_features)
            if name is not None:
                r = lora_rank(layer, name)
                down[:, :r], up[:r] = lora_weights(layer, name)
            self._padded_weights[name, rank] = down, up
        return self._padded_weights[name, rank]

    def __call__(self, x: Tensor, *inputs: Any, **options: Any) -> Tensor:
        """x: (R, ..., I); returns (R, ..., O)."""
        if not self.is_on:
            return torch.as_tensor(self._original_forward(x, *inputs, **options))
        base_output = torch.as_tensor(self._layer.base_layer(x, *inputs, **options))
        if self.weights is None:
            return base_output
        down, up = self.weights
        # x down is (R, T, r), then up: never the product down up, which would be as large as the
        # layer, for each row. Ranks differ between adapters, so all are padded with zeros to the
        # largest, which adds nothing; a row without an adapter is all zeros.
        # By shape, not by len: a trace would store len as a constant.
        low = torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), down)
        tokens = base_output.reshape(base_output.shape[0], -1, base_output.shape[-1])
        return torch.baddbmm(tokens, low, up).reshape(base_output.shape)
