"""The adapters of K subjects over one frozen network, in one block of memory each way.

A row of a block holds all numbers of one slot's adapter. So a subject's optimizer, the norm of its
gradient and its checkpoint are about one vector, and the layers of the network see the same memory
layer by layer. A rank below the one there is room for is padded by zeros, which stay zeros: their
gradients are products with zeros.

Legend: K slots, P numbers of the largest adapter, r rank.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreambooth_ray.compat.peft import parse_adapter_weight_name
from dreambooth_ray.config.adapters import LoraConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import lora
from dreambooth_ray.models.slot_adapter_layers import StackedLayer, find_stackable_class

# Which dimension of a weight, as peft has it, is the rank.
_RANK_DIMENSIONS = {"down": 0, "up": 1}


@dataclass(frozen=True)
class _WeightLayout:
    """A weight of an adapter: peft's name, where it belongs, and where in a row it lies.

    kind: down, up or magnitude, as `StackedLayer` calls them; shape: at the largest rank
    """

    name: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    def view_in_row(self, row: Tensor, rank: int) -> Tensor:
        """The weight in a (P,) row, as an adapter of that rank has it."""
        weight = row[self.offset : self.offset + math.prod(self.shape)].view(self.shape)
        rank_dimension = _RANK_DIMENSIONS.get(self.kind)
        return weight if rank_dimension is None else weight.narrow(rank_dimension, 0, rank)


class TrainingAdapterStack:
    """The adapters of K slots in a network whose layers it replaces.

    weights, gradients: (K, P) float32
    """

    def __init__(self, network: nn.Module, adapter: Mapping[str, Tensor], num_slots: int) -> None:
        """network: frozen; adapter: weights of one of the largest rank, in the order of training

        raises: ConfigError for layers that no stack can be made of
        """
        self._entries = _lay_out_weights(adapter)
        self.rank = next(e.shape[0] for e in self._entries if e.kind == "down")
        row_size = sum(math.prod(weight_layout.shape) for weight_layout in self._entries)
        device = next(network.parameters()).device
        self.weights = torch.zeros(num_slots, row_size, device=device)
        self.gradients = torch.zeros_like(self.weights)
        self._parameters: list[tuple[slice, nn.Parameter]] = []
        self._layers = self._replace_layers(network)

    def __len__(self) -> int:
        return len(self.weights)

    def _replace_layers(self, network: nn.Module) -> list[StackedLayer]:
        parameters_by_layer: dict[str, dict[str, nn.Parameter]] = {}
        for weight_layout in self._entries:
            parameters_by_layer.setdefault(weight_layout.layer, {})[weight_layout.kind] = (
                self._make_layer_parameter(weight_layout)
            )
        stacked_layers = []
        for layer_name, layer_parameters in parameters_by_layer.items():
            base_layer = network.get_submodule(layer_name)
            layer_class = find_stackable_class(base_layer)
            if layer_class is None:
                raise ConfigError(
                    f"train.lora: {layer_name} ({type(base_layer).__name__}) can't carry the "
                    "adapters of several subjects at once; leave out slots, or that layer"
                )
            stacked_layer = layer_class(
                base_layer,
                layer_parameters["down"],
                layer_parameters["up"],
                layer_parameters.get("magnitude"),
            )
            network.set_submodule(layer_name, stacked_layer)
            stacked_layers.append(stacked_layer)
        return stacked_layers

    def _make_layer_parameter(self, weight_layout: _WeightLayout) -> nn.Parameter:
        """The weight of all slots, which is memory of the block."""
        column_slice = slice(
            weight_layout.offset, weight_layout.offset + math.prod(weight_layout.shape)
        )
        shape = (len(self.weights), *weight_layout.shape)
        parameter = nn.Parameter(self.weights[:, column_slice].view(shape))
        self._parameters.append((column_slice, parameter))
        return parameter

    @torch.no_grad()
    def gather_layer_gradients(self) -> None:
        """Bring what a backward has left at the layers into `gradients`."""
        for column_slice, parameter in self._parameters:
            if parameter.grad is None:
                self.gradients[:, column_slice] = 0
            else:
                self.gradients[:, column_slice] = parameter.grad.flatten(1)
                parameter.grad = None

    def view_adapter_row(self, row: Tensor, rank: int) -> dict[str, Tensor]:
        """Views of a (P,) row by peft's names, in the order of training: weights, or gradients, or
        an optimizer's averages of them.
        """
        return {
            weight_layout.name: weight_layout.view_in_row(row, rank)
            for weight_layout in self._entries
        }

    @torch.no_grad()
    def fill_adapter_row(self, row: Tensor, rank: int, values: Mapping[str, Tensor]) -> None:
        """Copy values by name into a row; what they leave of it is zero."""
        row.zero_()
        for name, weight_view in self.view_adapter_row(row, rank).items():
            weight_view.copy_(values[name])

    def set_slot_adapter(
        self, slot: int, lora_config: LoraConfig, weights: Mapping[str, Tensor]
    ) -> nn.Parameter:
        """Give a slot an adapter; returns its (P,) row, to be trained."""
        self.fill_adapter_row(self.weights[slot], lora_config.rank, weights)
        for layer in self._layers:
            layer.scales[slot] = lora_config.scale
        return nn.Parameter(self.weights[slot])

    @torch.no_grad()
    def clear_slot_adapter(self, slot: int) -> None:
        """Leave a slot empty: its rows go through the network as it is."""
        self.weights[slot].zero_()
        self.gradients[slot].zero_()


def _lay_out_weights(adapter: Mapping[str, Tensor]) -> list[_WeightLayout]:
    weight_layouts, row_offset = [], 0
    for name, weight in adapter.items():
        layer_name, weight_kind = parse_adapter_weight_name(name)
        weight_layouts.append(
            _WeightLayout(name, layer_name, weight_kind, tuple(weight.shape), row_offset)
        )
        row_offset += weight.numel()
    return weight_layouts


def copy_network_without_memory(network: nn.Module, *, shares_weights: bool) -> nn.Module:
    """A copy of a frozen network that takes no memory, to inject a subject's adapters into.

    shares_weights: whether its weights are the network's, as DoRA's norms need them; otherwise
        they are zeros, in float32 whatever the network's are, as adapters begin in that
    """
    deepcopy_memo: dict[int, Tensor] = {}
    for weight in network.parameters():
        zeros = torch.zeros((), dtype=torch.float32).expand(weight.shape)
        deepcopy_memo[id(weight)] = (
            weight if shares_weights else nn.Parameter(zeros, requires_grad=False)
        )
    return copy.deepcopy(network, deepcopy_memo)


def make_adapter(
    network: nn.Module, lora_config: LoraConfig, targets: tuple[str, ...], seed: int
) -> dict[str, Tensor]:
    """A new adapter's weights by peft's names, in the order of training.

    raises: ConfigError as `lora.inject_adapters`
    """
    adapted_network = copy_network_without_memory(network, shares_weights=lora_config.dora)
    lora.inject_adapters(adapted_network, lora_config, targets, seed)
    return list_network_adapter_weights(adapted_network)


def list_network_adapter_weights(adapted: nn.Module) -> dict[str, Tensor]:
    """The weights of the adapters in a network by peft's names, in the order of training."""
    return {n: p.detach() for n, p in adapted.named_parameters() if p.requires_grad}
