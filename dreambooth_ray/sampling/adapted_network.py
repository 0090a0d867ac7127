"""A network and its adapters: each row of a forward goes through its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from dreambooth_ray.adapters.layer_adapter import LayerAdapter, find_layer
from dreambooth_ray.config.adapter_mix import AdapterMix
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.sampling.adapted_layer import AdaptedLayer
from dreambooth_ray.sampling.lora_batching import (
    AdapterMixes,
    BatchedLoraLayers,
    adapters_switched_on,
)


class AdaptedNetwork:
    """A network and its adapters; rows of different ones share a forward.

    What is more than the product of two matrices beside a linear layer (DoRA, LoHa, LoKr,
    convolutions) gets a forward of its own, with weights that are put together layer by layer.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self._layers: dict[str, AdaptedLayer] = {}
        # Runs all loaded adapters of plain LoRA in one forward.
        self.lora_batch: BatchedLoraLayers | None = None
        self._unbatchable: set[str] = set()
        self.names: set[str] = set()

    def add_adapter(self, name: str, layers: Mapping[str, LayerAdapter]) -> None:
        """Load an adapter under a name; layers: by their names.

        raises: ConfigError for a layer that the network has not
        """
        modules = {layer: find_layer(self.network, layer) for layer in layers}
        for layer, module in modules.items():
            if not isinstance(getattr(module, "weight", None), nn.Parameter):
                raise ConfigError(f"adapter {name!r}: {layer} is no layer of this model")
        for layer, module in modules.items():
            if layer not in self._layers:
                assert module is not None
                self._layers[layer] = AdaptedLayer(layer, module)
            self._layers[layer].add_adapter(name, layers[layer])
            if not self._layers[layer].can_batch_adapter(name):
                self._unbatchable.add(name)
        self.names.add(name)
        self._rebuild_lora_batch()

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter; an unknown name is no error."""
        self.names.discard(name)
        self._unbatchable.discard(name)
        for layer in list(self._layers.values()):
            layer.remove_adapter(name)
            if not layer.adapters:
                self._layers.pop(layer.name).restore_forward()
        self._rebuild_lora_batch()

    def _rebuild_lora_batch(self) -> None:
        self.lora_batch = BatchedLoraLayers(self._layers.values()) if self._layers else None

    def is_unbatchable(self, mix: AdapterMix) -> bool:
        """Whether rows of a mix can't share a forward with others."""
        return any(adapter_use.name in self._unbatchable for adapter_use in mix)

    def loaded_mixes(self, mixes: Sequence[AdapterMix]) -> AdapterMixes:
        """Of each row, what is loaded of its mix."""
        return tuple(
            tuple(adapter_use for adapter_use in mix if adapter_use.name in self.names)
            for mix in mixes
        )

    def find_lora_batch(self, mixes: AdapterMixes) -> BatchedLoraLayers | None:
        """The LoraBatch that runs these; None where their rows have a forward of their own."""
        return None if self.is_unbatchable(mixes[0]) else self.lora_batch

    @contextmanager
    def route_rows(self, mixes: Sequence[AdapterMix]) -> Iterator[None]:
        """Inside, row i of the network's input goes through mixes[i]; rows are of one group."""
        loaded_mixes = self.loaded_mixes(mixes)
        if self.lora_batch is None:
            yield
        elif self.find_lora_batch(loaded_mixes) is not None:
            with self.lora_batch.route_rows(loaded_mixes):
                yield
        else:
            adapted_layers = list(self._layers.values())
            for layer in adapted_layers:
                layer.use_merged_mix(loaded_mixes[0])
            try:
                with adapters_switched_on(adapted_layers):
                    yield
            finally:
                for layer in adapted_layers:
                    layer.use_merged_mix(None)

    def __call__(
        self, *inputs: Any, adapters: Sequence[AdapterMix], replacement: Any = None, **options: Any
    ) -> Any:
        """The network's output for rows of one group.

        replacement: a module over the same layers, to call in its place
        """
        with self.route_rows(adapters):
            return (replacement or self.network)(*inputs, **options)
