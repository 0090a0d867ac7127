"""An adapter with its tensors: of a file of any trainer, of a folder of peft's, or of a bundle."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_ray.adapters.adapter_files import bind_adapter
from dreambooth_ray.adapters.binding import BoundLayer, find_magnitude_axis
from dreambooth_ray.adapters.layer_adapter import LayerAdapter
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.adapters.scales import LayerScales, check_finite
from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.models.tensor_files import open_tensors

LayerKey = tuple[str, str]
_MAGNITUDES = ("magnitude", "dora_scale")


@dataclass(frozen=True)
class Adapter:
    """layers: by (part, layer), as LayerPlace names them; kinds: lora, dora, loha, lokr"""

    layers: Mapping[LayerKey, LayerAdapter]
    kinds: frozenset[str]

    @cached_property
    def num_bytes(self) -> int:
        """Of its tensors in memory."""
        # The layers of a file's fused one share their factors.
        tensors = {id(t): t.numel() * t.element_size() for a in self.layers.values()
                   for t in a.tensors}  # fmt: skip
        return sum(tensors.values())

    def of_part(self, part: str) -> dict[str, LayerAdapter]:
        """By layer, of one network."""
        return {layer: own for (name, layer), own in self.layers.items() if name == part}


def read_adapter(path: Path, table: LayerTable) -> Adapter:
    """Read an adapter for a model; path: as `list_adapter_files`.

    raises: ConfigError for what does not fit the model or has numbers that are none
    """
    layers: dict[LayerKey, LayerAdapter] = {}
    kinds: set[str] = set()
    for file, _, binding in bind_adapter(path, table):
        kinds |= binding.kinds
        scales = LayerScales(file, binding.metadata)
        try:
            tensors = open_tensors(file)
            for bound in binding.layers:
                layers.update(_read_layer(bound, tensors, scales))
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
    return Adapter(layers, frozenset(kinds))


def _read_layer(
    bound: BoundLayer, tensors: Mapping[str, Tensor], scales: LayerScales
) -> Iterator[tuple[LayerKey, LayerAdapter]]:
    read = {role: check_finite(key, tensors[key]) for role, key in bound.keys.items()}
    alpha = read.pop("alpha", None)
    role = next((name for name in _MAGNITUDES if name in read), None)
    magnitude = read.pop(role) if role else None
    factors = {name: tensor.contiguous() for name, tensor in read.items()}
    for place in bound.places:
        axis = 0
        own_magnitude = magnitude
        if role and magnitude is not None:
            weight = (place.file_rows, *place.shape[1:])
            axis = find_magnitude_axis(role, tuple(magnitude.shape), weight) or 0
            own_magnitude = magnitude.flatten()
            if axis == 0:
                own_magnitude = torch.cat([own_magnitude[begin:end] for begin, end in place.rows])
        yield (
            (place.part, place.layer),
            LayerAdapter(
                factors,
                scales.find(bound.file_layer, bound.rank, alpha),
                None if place.is_whole else place.rows,
                own_magnitude,
                axis,
            ),
        )
