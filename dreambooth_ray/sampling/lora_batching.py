"""Many LoRA adapters in one forward: each row of a layer's input goes through its own.

peft mixes adapters too: for each layer and adapter it copies the rows out and back, one adapter a
row. Here a layer computes all its rows in two batched products, with any number of adapters each.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from dreambooth_ray.config.adapter_mix import AdapterMix
from dreambooth_ray.sampling.adapted_layer import AdaptedLayer

# Of each row.
AdapterMixes = tuple[AdapterMix, ...]


class BatchedLoraLayers:
    """The layers of a network with plain LoRA adapters; made again when adapters come or go."""

    def __init__(self, layers: Iterable[AdaptedLayer]) -> None:
        self._layers = list(layers)
        self._mixes: AdapterMixes | None = None

    def list_adapter_weights(self) -> list[Tensor]:
        """Weights of all layers with adapters for the current rows."""
        return [weight for layer in self._layers for weight in layer.weights or ()]

    def active_layer_names(self) -> tuple[str, ...]:
        """The names of those layers."""
        return tuple(layer.name for layer in self._layers if layer.weights is not None)

    def replace_lora_weight_tensors(self, weights: Sequence[Tensor]) -> None:
        """Use these weights instead, in the order of `weights()`.

        A trace keeps every tensor that it meets as a constant, unless it is one of its inputs. So
        weights go in as inputs and are put back here: one trace then serves whichever adapters.
        """
        weight_iterator = iter(weights)
        for layer in self._layers:
            if layer.weights is not None:
                layer.weights = next(weight_iterator), next(weight_iterator)

    @contextmanager
    def route_rows(self, mixes: AdapterMixes) -> Iterator[None]:
        """Inside, row i of every layer's input goes through the adapters of mixes[i]."""
        if mixes != self._mixes:
            # A batch stays the same for some steps, so its stacked weights are reused.
            for layer in self._layers:
                layer.stack_weights(mixes)
            self._mixes = mixes
        with adapters_switched_on(self._layers):
            yield


@contextmanager
def adapters_switched_on(layers: Sequence[AdaptedLayer]) -> Iterator[None]:
    """Inside, layers are adapted."""
    for layer in layers:
        layer.is_on = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_on = False
