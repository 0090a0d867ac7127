"""A subject's adapter in a network of its own, for what is computed for it alone.

Frozen weights are those of the batch's network: no memory is taken but the adapter's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dreambooth_ray.config.schema import Config
from dreambooth_ray.models import lora
from dreambooth_ray.models.adapter_stack import (
    copy_network_without_memory,
    list_network_adapter_weights,
)
from dreambooth_ray.models.components import Components
from dreambooth_ray.training.recorded_forwards import StepForwards

# Networks that are remembered: most subjects of a fleet have one rank.
_KEPT_NETWORKS = 4


class SoloNetwork:
    """One adapter's shape in a frozen network, whose subject changes."""

    def __init__(self, config: Config, components: Components) -> None:
        """config: of a subject; components: with the frozen network, cast as it is trained"""
        lora_config = config.train.lora
        target_modules = lora_config.target_modules or components.family.lora_targets
        network: Any = copy_network_without_memory(components.denoiser, shares_weights=True)
        lora.inject_adapters(network, lora_config, target_modules, config.seed)
        network.to(components.denoiser.device)
        # What a graph holds is not worth its memory here.
        train_config = config.train.model_copy(update={"cuda_graphs": False})
        self.forwards = StepForwards(
            config.model_copy(update={"train": train_config}), components.functions, network, {}
        )
        self.components = replace(components, denoiser=network.eval())
        self._weights = list_network_adapter_weights(network)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take a subject's place. weights: by peft's names"""
        for weight_name, weight_tensor in self._weights.items():
            weight_tensor.copy_(weights[weight_name])


class SoloNetworkCache:
    """A network for each kind of adapter that was asked for."""

    def __init__(self, components: Components) -> None:
        """components: as of SoloNetwork"""
        self._components = components
        self._networks: dict[str, SoloNetwork] = {}

    def load(self, config: Config, weights: Mapping[str, Tensor]) -> SoloNetwork:
        """The network of a subject with these weights, until the next is asked for."""
        adapter_key = config.train.lora.model_dump_json()
        if adapter_key not in self._networks:
            if len(self._networks) >= _KEPT_NETWORKS:
                self._networks.pop(next(iter(self._networks)))
            self._networks[adapter_key] = SoloNetwork(config, self._components)
        self._networks[adapter_key].load(weights)
        return self._networks[adapter_key]
