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

from dreambooth_ray.compat.peft import parse_adapter_name
from dreambooth_ray.config.adapters import LoraConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import lora
from dreambooth_ray.models.stacked_layers import StackedLayer, find_stackable_class

# Which dimension of a weight, as peft has it, is the rank.
_RANK_DIMENSIONS = {"down": 0, "up": 1}


@dataclass(frozen=True)
class _AdapterWeight:
    """A weight of an adapter: peft's name, where it belongs, and where in a row it lies.

    kind: down, up or magnitude, as `StackedLayer` calls them; shape: at the largest rank
    """

    name: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    def view(self, row: Tensor, rank: int) -> Tensor:
        """The weight in a (P,) row, as an adapter of that rank has it."""
        weight = row[self.offset : self.offset + math.prod(self.shape)].view(self.shape)
        rank_dimension = _RANK_DIMENSIONS.get(self.kind)
        return weight if rank_dimension is None else weight.narrow(rank_dimension, 0, rank)


class AdapterStack:
    """The adapters of K slots in a network whose layers it replaces.

    weights, gradients: (K, P) float32
    """

    def __init__(self, network: nn.Module, adapter: Mapping[str, Tensor], num_slots: int) -> None:
        """network: frozen; adapter: weights of one of the largest rank, in the order of training

        raises: ConfigError for layers that no stack can be made of
        """
        self._entries = _list_weights(adapter)
        self.rank = next(e.shape[0] for e in self._entries if e.kind == "down")
        row_size = sum(math.prod(entry.shape) for entry in self._entries)
        device = next(network.parameters()).device
        self.weights = torch.zeros(num_slots, row_size, device=device)
        self.gradients = torch.zeros_like(self.weights)
        self._parameters: list[tuple[slice, nn.Parameter]] = []
        self._layers = self._replace_layers(network)

    def __len__(self) -> int:
        return len(self.weights)

    def _replace_layers(self, network: nn.Module) -> list[StackedLayer]:
        parameters_by_layer: dict[str, dict[str, nn.Parameter]] = {}
        for entry in self._entries:
            parameters_by_layer.setdefault(entry.layer, {})[entry.kind] = self._make_parameter(
                entry
            )
        layers = []
        for layer_name, layer_parameters in parameters_by_layer.items():
            base_layer = network.get_submodule(layer_name)
            layer_class = find_stackable_class(base_layer)
            if layer_class is None:
                raise ConfigError(
                    f"train.lora: {layer_name} ({type(base_layer).__name__}) can't carry the "
                    "adapters of several subjects at once; leave out slots, or that layer"
                )
            layer = layer_class(
                base_layer,
                layer_parameters["down"],
                layer_parameters["up"],
                layer_parameters.get("magnitude"),
            )
            network.set_submodule(layer_name, layer)
            layers.append(layer)
        return layers

    def _make_parameter(self, entry: _AdapterWeight) -> nn.Parameter:
        """The weight of all slots, which is memory of the block."""
        columns = slice(entry.offset, entry.offset + math.prod(entry.shape))
        shape = (len(self.weights), *entry.shape)
        parameter = nn.Parameter(self.weights[:, columns].view(shape))
        self._parameters.append((columns, parameter))
        return parameter

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Bring what a backward has left at the layers into `gradients`."""
        for columns, parameter in self._parameters:
            if parameter.grad is None:
                self.gradients[:, columns] = 0
            else:
                self.gradients[:, columns] = parameter.grad.flatten(1)
                parameter.grad = None

    def view_row(self, row: Tensor, rank: int) -> dict[str, Tensor]:
        """Views of a (P,) row by peft's names, in the order of training: weights, or gradients, or
        an optimizer's averages of them.
        """
        return {entry.name: entry.view(row, rank) for entry in self._entries}

    @torch.no_grad()
    def fill_row(self, row: Tensor, rank: int, values: Mapping[str, Tensor]) -> None:
        """Copy values by name into a row; what they leave of it is zero."""
        row.zero_()
        for name, view in self.view_row(row, rank).items():
            view.copy_(values[name])

    def set_slot(
        self, slot: int, lora_config: LoraConfig, weights: Mapping[str, Tensor]
    ) -> nn.Parameter:
        """Give a slot an adapter; returns its (P,) row, to be trained."""
        self.fill_row(self.weights[slot], lora_config.rank, weights)
        for layer in self._layers:
            layer.scales[slot] = lora_config.scale
        return nn.Parameter(self.weights[slot])

    @torch.no_grad()
    def clear_slot(self, slot: int) -> None:
        """Leave a slot empty: its rows go through the network as it is."""
        self.weights[slot].zero_()
        self.gradients[slot].zero_()


def _list_weights(adapter: Mapping[str, Tensor]) -> list[_AdapterWeight]:
    adapter_weights, offset = [], 0
    for name, weight in adapter.items():
        layer_name, kind = parse_adapter_name(name)
        adapter_weights.append(_AdapterWeight(name, layer_name, kind, tuple(weight.shape), offset))
        offset += weight.numel()
    return adapter_weights


def copy_for_adapters(network: nn.Module, *, shares_weights: bool) -> nn.Module:
    """A copy of a frozen network that takes no memory, to inject a subject's adapters into.

    shares_weights: whether its weights are the network's, as DoRA's norms need them; otherwise
        they are zeros, in float32 whatever the network's are, as adapters begin in that
    """
    memo: dict[int, Tensor] = {}
    for weight in network.parameters():
        zeros = torch.zeros((), dtype=torch.float32).expand(weight.shape)
        memo[id(weight)] = weight if shares_weights else nn.Parameter(zeros, requires_grad=False)
    return copy.deepcopy(network, memo)


def make_adapter(
    network: nn.Module, lora_config: LoraConfig, targets: tuple[str, ...], seed: int
) -> dict[str, Tensor]:
    """A new adapter's weights by peft's names, in the order of training.

    raises: ConfigError as `lora.inject_adapters`
    """
    adapted_network = copy_for_adapters(network, shares_weights=lora_config.dora)
    lora.inject_adapters(adapted_network, lora_config, targets, seed)
    return list_adapter_weights(adapted_network)


def list_adapter_weights(adapted: nn.Module) -> dict[str, Tensor]:
    """The weights of the adapters in a network by peft's names, in the order of training."""
    return {n: p.detach() for n, p in adapted.named_parameters() if p.requires_grad}
