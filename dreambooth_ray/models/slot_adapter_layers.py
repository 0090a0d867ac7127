"""Layers of a frozen network, each with one adapter a slot: a forward of all slots at once.

The formulas are peft's; the products of all slots are batched, and rows of one slot meet no
numbers of another.

Legend: K slots, b rows of a slot, R = K b rows of a forward, slot after slot, T tokens of a slot's
rows, I, O features or channels, r the rank that a slot has room for, h, w sides.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedLayer(nn.Module, ABC):
    """A layer, the adapters of K slots, and the factor of each (alpha / rank).

    down: (K, r, I, ...); up: (K, O, r, ...); magnitude: (K, O) or None, of DoRA; all as peft has
    those of one, behind a dimension of slots. scales: (K,)
    """

    down: nn.Parameter
    up: nn.Parameter
    magnitude: nn.Parameter | None

    def __init__(
        self, base_layer: Any, down: nn.Parameter, up: nn.Parameter, magnitude: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.base_layer, self.num_slots = base_layer, len(down)
        self.down, self.up, self.magnitude = down, up, magnitude
        self.scales: Tensor
        self.register_buffer("scales", torch.ones(len(down), device=down.device))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for R rows, each through the adapter of its slot."""

    @abstractmethod
    def _compute_low(self, x: Tensor) -> Tensor:
        """(K, n, r): what the first matrices make of n tokens or pixels of each slot, scaled."""

    def _find_magnitude_factors(self) -> Tensor:
        """(K, O): the learnt magnitude of each output over the norm of its weights.

        The norm counts as a constant (DoRA, arXiv 2402.09353, 4.3). Of W + s B A it is
        ||W||^2 + 2 s <W, B A> + s^2 ||B A||^2: no matrix of W's size is made for a slot.
        """
        assert self.magnitude is not None
        # Detached, not under no_grad: a trace records the one and forgets the other.
        weight, magnitude = self.base_layer.weight.flatten(1), self.magnitude.flatten(1)
        down, up = self.down.detach().flatten(2), self.up.detach().flatten(2)
        weight_delta_products = torch.einsum("oi,kri->kor", weight, down).mul(up).sum(-1)
        squared_delta_norms = (up @ (down @ down.transpose(1, 2))).mul(up).sum(-1)
        slot_scales = self.scales[:, None]
        squared_weight_norms = (
            weight.square().sum(1)
            + 2 * slot_scales * weight_delta_products
            + slot_scales.square() * squared_delta_norms
        )
        # A slot that nobody is in has no magnitude: its output is the layer's.
        is_empty_slot = (magnitude.detach() == 0).all(dim=1, keepdim=True)
        weight_norms = torch.where(
            is_empty_slot,
            torch.ones_like(squared_weight_norms),
            squared_weight_norms.clamp(min=0).sqrt(),
        )
        magnitude_factors = magnitude / weight_norms
        return torch.where(is_empty_slot, torch.ones_like(magnitude_factors), magnitude_factors)


class StackedLinear(StackedLayer):
    """Of a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (R, ..., I); returns (R, ..., O)."""
        base_output = torch.as_tensor(self.base_layer(x))
        base_output_by_slot = base_output.reshape(self.num_slots, -1, base_output.shape[-1])
        low = self._compute_low(x)
        up = self.up.transpose(1, 2)
        if self.magnitude is None:
            return torch.baddbmm(base_output_by_slot, low, up).reshape(base_output.shape)
        magnitude_factors = self._find_magnitude_factors()[:, None]
        output_without_bias = (
            base_output_by_slot
            if self.base_layer.bias is None
            else base_output_by_slot - self.base_layer.bias
        )
        output = base_output_by_slot + (
            (magnitude_factors - 1) * output_without_bias + magnitude_factors * torch.bmm(low, up)
        )
        return output.reshape(base_output.shape)

    def _compute_low(self, x: Tensor) -> Tensor:
        slot_tokens = x.reshape(self.num_slots, -1, x.shape[-1])
        return torch.bmm(slot_tokens, self.down.transpose(1, 2)) * self.scales[:, None, None]


class StackedConv2d(StackedLayer):
    """Of a convolution without groups: slots are the groups of the adapters' first one."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (R, I, h, w); returns (R, O, h', w')."""
        base_output = torch.as_tensor(self.base_layer(x))
        # (K, b, O, r) times (K, b, r, h' w').
        adapter_output = torch.matmul(self.up.flatten(2)[:, None], self._compute_low(x))
        adapter_output = adapter_output.reshape(base_output.shape)
        if self.magnitude is None:
            return base_output + adapter_output
        magnitude_factors = self._find_magnitude_factors()[:, None, :, None, None]
        bias = self.base_layer.bias
        output_without_bias = base_output if bias is None else base_output - bias[:, None, None]
        output_shape_by_slot = (self.num_slots, -1, *base_output.shape[1:])
        output_delta = (magnitude_factors - 1) * output_without_bias.reshape(
            output_shape_by_slot
        ) + magnitude_factors * adapter_output.reshape(output_shape_by_slot)
        return base_output + output_delta.reshape(base_output.shape)

    def _compute_low(self, x: Tensor) -> Tensor:
        """(K, b, r, h' w')"""
        layer, num_slots = self.base_layer, self.num_slots
        rank, channels = self.down.shape[1:3]
        inputs_by_slot = x.reshape(num_slots, -1, *x.shape[1:]).transpose(0, 1)
        low = F.conv2d(
            inputs_by_slot.reshape(-1, num_slots * channels, *x.shape[2:]),
            self.down.flatten(0, 1),
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
            groups=num_slots,
        )
        low = low.reshape(-1, num_slots, rank, low.shape[-2] * low.shape[-1]).transpose(0, 1)
        return low * self.scales[:, None, None, None]


def find_stackable_class(layer: nn.Module) -> type[StackedLayer] | None:
    """What carries the adapters of such a layer; None where nothing here does."""
    if isinstance(layer, nn.Linear):
        return StackedLinear
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        return StackedConv2d
    return None
