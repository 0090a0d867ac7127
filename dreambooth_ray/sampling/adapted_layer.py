"""One layer whose rows go through adapters, in the place of its own forward.

Legend: R rows, T tokens, I, O features in and out, r the largest sum of ranks among the rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dreambooth_ray.adapters.layer_adapter import LayerAdapter, add_deltas_to_weight
from dreambooth_ray.config.adapter_mix import AdapterMix


class AdaptedLayer:
    """Stands before a module's forward until `restore`; off, it is the module itself."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self._module = name, module
        self.adapters: dict[str, LayerAdapter] = {}
        # Stacked factors of the rows of a forward; None where no row has any here.
        self.weights: tuple[Tensor, Tensor] | None = None
        self.is_on = False
        # Of all rows, in the place of the module's own weight; None for a stack.
        self._merged_mix: AdapterMix | None = None
        self._padded_weights: dict[tuple[AdapterMix, int], tuple[Tensor, Tensor]] = {}
        module.forward = self

    def restore_forward(self) -> None:
        """Take it away again."""
        del self._module.forward

    def add_adapter(self, name: str, adapter: LayerAdapter) -> None:
        """Take an adapter, to this layer's device."""
        self.adapters[name] = adapter.to(self._base_weight.device)
        self.forget()

    def remove_adapter(self, name: str) -> None:
        """An unknown name is no error."""
        self.adapters.pop(name, None)
        self.forget()

    def forget(self) -> None:
        """What was put together of adapters that have gone since."""
        self._padded_weights.clear()
        self.weights = None

    @property
    def _base_weight(self) -> Tensor:
        weight = self._module.weight
        assert isinstance(weight, Tensor)
        return weight

    def can_batch_adapter(self, name: str) -> bool:
        """Whether an adapter's rows can share a product with others'."""
        return isinstance(self._module, nn.Linear) and self.adapters[name].is_plain

    def use_merged_mix(self, mix: AdapterMix | None) -> None:
        """Use one mix for all rows from now on, by the sum of its weights; None ends it."""
        self._merged_mix = mix

    @torch.no_grad()
    def stack_weights(self, mixes: Sequence[AdapterMix]) -> None:
        """Stacks factors to (R, I, r) and (R, r, O)."""
        loaded_mixes = [self._select_loaded(mix) for mix in mixes]
        ranks = [
            sum(self._adapter_rank(adapter_use.name) for adapter_use in mix) for mix in loaded_mixes
        ]
        if not any(loaded_mixes):
            self.weights = None
            return
        # Of the last rows alone: callers choose weights freely, so mixes never repeat for sure.
        cache_keys = [(mix, max(ranks)) for mix in loaded_mixes]
        self._padded_weights = {
            cache_key: self._padded_weights.get(cache_key) or self._pad_factors(*cache_key)
            for cache_key in cache_keys
        }
        padded_factors = [self._padded_weights[cache_key] for cache_key in cache_keys]
        self.weights = (
            torch.stack([d for d, _ in padded_factors]),
            torch.stack([u for _, u in padded_factors]),
        )

    def _select_loaded(self, mix: AdapterMix) -> AdapterMix:
        return tuple(adapter_use for adapter_use in mix if adapter_use.name in self.adapters)

    def _adapter_rank(self, name: str) -> int:
        return int(self.adapters[name].factors["down"].shape[0])

    def _pad_factors(self, mix: AdapterMix, rank: int) -> tuple[Tensor, Tensor]:
        """(I, rank) and (rank, O) of one mix.

        The sum of products is the product of the factors side by side.
        """
        base_weight = self._base_weight
        down, up = (
            base_weight.new_zeros(base_weight.shape[1], rank),
            base_weight.new_zeros(rank, base_weight.shape[0]),
        )
        begin = 0
        for adapter_use in mix:
            own_down, own_up = self.adapters[adapter_use.name].low_rank()
            end = begin + own_down.shape[0]
            down[:, begin:end], up[begin:end] = own_down.T, own_up.T * adapter_use.weight
            begin = end
        return down, up

    def __call__(self, x: Tensor, *inputs: Any, **options: Any) -> Tensor:
        """x: (R, ..., I) where rows differ, or (R n, ..., I): n of each row, one behind the other,
        its windows, or its tokens where a network attends across something else of each.

        returns: as many rows, (..., O)
        """
        if not self.is_on:
            return self._run_base_module(x, *inputs, **options)
        if self._merged_mix is not None:
            return self._run_merged(self._select_loaded(self._merged_mix), x, *inputs, **options)
        output = self._run_base_module(x, *inputs, **options)
        if self.weights is None:
            return output
        down, up = self.weights
        # x down is (R, T, r), then up: never the product down up, which would be as large as the
        # layer, for each row. Ranks differ between adapters, so all are padded with zeros to the
        # largest, which adds nothing; a row without an adapter is all zeros.
        # By shape, not by len: a trace would store len as a constant.
        low = torch.bmm(x.reshape(down.shape[0], -1, x.shape[-1]), down)
        layer_output_tokens = output.reshape(down.shape[0], -1, output.shape[-1])
        return torch.baddbmm(layer_output_tokens, low, up).reshape(output.shape)

    def _run_base_module(self, x: Tensor, *inputs: Any, **options: Any) -> Tensor:
        # By its class: `forward` of the module is this object.
        return torch.as_tensor(type(self._module).forward(self._module, x, *inputs, **options))

    def _run_merged(self, mix: AdapterMix, x: Tensor, *inputs: Any, **options: Any) -> Tensor:
        if not mix:
            return self._run_base_module(x, *inputs, **options)
        # Made for this call alone: kept, it would take as much memory as the model.
        weighted_adapters = [
            (self.adapters[adapter_use.name], adapter_use.weight) for adapter_use in mix
        ]
        merged_weight = add_deltas_to_weight(self._base_weight, weighted_adapters).to(
            self._base_weight.dtype
        )
        self.is_on = False
        try:
            output = functional_call(self._module, {"weight": merged_weight}, (x, *inputs), options)
        finally:
            self.is_on = True
        return torch.as_tensor(output)
