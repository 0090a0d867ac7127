"""An adapter with its tensors: of a file of any trainer, of a folder of peft's, or of a bundle."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_ray.adapters.adapter_files import bind_adapter
from dreambooth_ray.adapters.binding import LayerBinding, find_magnitude_axis
from dreambooth_ray.adapters.layer_adapter import LayerAdapter
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.adapters.scales import LayerScales, check_tensor_is_finite
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
        bytes_by_tensor_id = {id(t): t.numel() * t.element_size() for a in self.layers.values()
                   for t in a.tensors}  # fmt: skip
        return sum(bytes_by_tensor_id.values())

    def of_part(self, part: str) -> dict[str, LayerAdapter]:
        """By layer, of one network."""
        return {layer: adapter for (name, layer), adapter in self.layers.items() if name == part}


def read_adapter(path: Path, table: LayerTable) -> Adapter:
    """Read an adapter for a model; path: as `list_adapter_files`.

    raises: ConfigError for what does not fit the model or has numbers that are none
    """
    layers: dict[LayerKey, LayerAdapter] = {}
    kinds: set[str] = set()
    for adapter_file, _, bound_file in bind_adapter(path, table):
        kinds |= bound_file.kinds
        scales = LayerScales(adapter_file, bound_file.metadata)
        try:
            tensors = open_tensors(adapter_file)
            for bound_layer in bound_file.layers:
                layers.update(_read_layer(bound_layer, tensors, scales))
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
    return Adapter(layers, frozenset(kinds))


def _read_layer(
    bound_layer: LayerBinding, tensors: Mapping[str, Tensor], scales: LayerScales
) -> Iterator[tuple[LayerKey, LayerAdapter]]:
    tensors_by_role = {
        role: check_tensor_is_finite(key, tensors[key]) for role, key in bound_layer.keys.items()
    }
    alpha = tensors_by_role.pop("alpha", None)
    magnitude_role = next((name for name in _MAGNITUDES if name in tensors_by_role), None)
    magnitude = tensors_by_role.pop(magnitude_role) if magnitude_role else None
    factors = {name: tensor.contiguous() for name, tensor in tensors_by_role.items()}
    for layer_place in bound_layer.places:
        magnitude_axis = 0
        own_magnitude = magnitude
        if magnitude_role and magnitude is not None:
            weight_shape = (layer_place.num_file_rows, *layer_place.shape[1:])
            magnitude_axis = (
                find_magnitude_axis(magnitude_role, tuple(magnitude.shape), weight_shape) or 0
            )
            own_magnitude = magnitude.flatten()
            if magnitude_axis == 0:
                own_magnitude = torch.cat(
                    [own_magnitude[begin:end] for begin, end in layer_place.rows]
                )
        yield (
            (layer_place.part, layer_place.layer),
            LayerAdapter(
                factors,
                scales.find(bound_layer.file_layer, bound_layer.rank, alpha),
                None if layer_place.is_whole else layer_place.rows,
                own_magnitude,
                magnitude_axis,
            ),
        )
