"""One forward of the denoiser for many requests, each with its own time, prompt and adapter.

Legend: R rows of a forward, C latent channels, h, w latent sides, F features before the last block.
"""

from collections.abc import Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_ray.config.adapter_mix import AdapterMix
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.graphed_forward import GraphedForward
from dreambooth_ray.models.model_functions import ModelFunctions
from dreambooth_ray.models.precision import autocast_mixed, has_mixed_dtypes
from dreambooth_ray.models.traced_forward import WARMUP_CALLS, TracedForward
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.deepcache import DeepCache


@dataclass
class ForwardRow:
    """One row of a forward.

    x:                (in_channels, h, w); conditioning: one row; timestep: a number or ()
    returns_features: whether the forward stores its features in `cached_features`
    cached_features:  (F, h, w) to use instead of the denoiser's middle, or None
    """

    x: Tensor
    timestep: float | Tensor
    conditioning: Conditioning
    adapters: AdapterMix = ()
    returns_features: bool = False
    cached_features: Tensor | None = None


class _LoraDenoiser(nn.Module):
    """A denoiser that takes a batch's adapter weights after its own inputs."""

    def __init__(self, functions: ModelFunctions, adapted: AdaptedNetwork) -> None:
        super().__init__()
        denoiser_function = functions.denoiser_function(adapted.network)
        # Its first child is what `TracedForward` asks whether it is in training.
        self.network = adapted.network
        self.function = denoiser_function
        self._adapted = adapted

    def forward(self, x: Tensor, time: Tensor, *inputs: Tensor) -> Tensor:
        num_lora_weights = 0
        if self._adapted.lora_batch is not None:
            num_lora_weights = len(self._adapted.lora_batch.list_adapter_weights())
            self._adapted.lora_batch.replace_lora_weight_tensors(
                inputs[len(inputs) - num_lora_weights :]
            )
        return torch.as_tensor(self.function(x, time, *inputs[: len(inputs) - num_lora_weights]))


class _TracedDenoiser:
    """The whole denoiser by recordings, one for each set of layers with adapters.

    A recording is a trace on a CPU, and CUDA graphs on a GPU. It stays valid when adapters come
    and go: their weights are inputs of it.
    """

    def __init__(
        self, functions: ModelFunctions, adapted: AdaptedNetwork, warmup_calls: int, is_gpu: bool
    ) -> None:
        self._functions, self._adapted = functions, adapted
        self._warmup_calls, self._is_gpu = warmup_calls, is_gpu
        self._recordings: dict[tuple[str, ...], TracedForward | GraphedForward] = {}

    def __call__(self, *inputs: Tensor, adapters: list[AdapterMix]) -> Tensor | None:
        """The denoiser's output for rows of one group; None where no recording can run it."""
        adapted_network = self._adapted
        if adapted_network.lora_batch is None:
            return self._get_layers_recording(())(*inputs)
        mixes = adapted_network.loaded_mixes(adapters)
        if (lora_batch := adapted_network.find_lora_batch(mixes)) is None:
            return None
        with lora_batch.route_rows(mixes):
            return self._get_layers_recording(lora_batch.active_layer_names())(
                *inputs, *lora_batch.list_adapter_weights()
            )

    def _get_layers_recording(self, layer_names: tuple[str, ...]) -> TracedForward | GraphedForward:
        if layer_names not in self._recordings:
            lora_denoiser = _LoraDenoiser(self._functions, self._adapted)
            self._recordings[layer_names] = (
                GraphedForward(lora_denoiser)
                if self._is_gpu
                else TracedForward(lora_denoiser, self._warmup_calls)
            )
        return self._recordings[layer_names]


class Denoiser:
    """The denoiser as the engine calls it."""

    def __init__(self, parts: Components, warmup_calls: int = WARMUP_CALLS) -> None:
        """warmup_calls: forwards before it is traced."""
        network, self.functions = parts.denoiser, parts.functions
        self.adapted = AdaptedNetwork(network)
        self._deepcache = DeepCache(network) if parts.family.can("deepcache") else None
        self._first_weight = next(network.parameters())
        # As in training, where what is frozen is in half and what is trained is not.
        self._is_mixed = has_mixed_dtypes(network)
        is_gpu = self._first_weight.device.type == "cuda"
        self._recorded = _TracedDenoiser(self.functions, self.adapted, warmup_calls, is_gpu)
        self.in_channels = self.functions.in_channels(network, parts.vae)

    @torch.no_grad()
    def __call__(self, rows: list[ForwardRow]) -> Tensor:
        """(R, C, h, w) float32 predictions; fills row.cached_features."""
        row_groups = self._group_rows(rows)
        if len(row_groups) == 1:
            return self._predict_group(rows).float()
        prediction_by_row: dict[int, Tensor] = {}
        for row_indices in row_groups:
            prediction = self._predict_group([rows[i] for i in row_indices]).float()
            prediction_by_row.update(zip(row_indices, prediction, strict=True))
        return torch.stack([prediction_by_row[i] for i in range(len(rows))])

    def _group_rows(self, rows: list[ForwardRow]) -> list[list[int]]:
        """Rows that share a forward: by their family, adapters that mix, all or none cached."""
        row_groups: dict[tuple[Hashable, AdapterMix, bool], list[int]] = {}
        for row_index, row in enumerate(rows):
            unbatchable_mix = row.adapters if self.adapted.is_unbatchable(row.adapters) else ()
            row_groups.setdefault(
                (
                    self.functions.batch_key(row.conditioning),
                    unbatchable_mix,
                    row.cached_features is None,
                ),
                [],
            ).append(row_index)
        return list(row_groups.values())

    def _predict_group(self, rows: list[ForwardRow]) -> Tensor:
        dtype, device = self._first_weight.dtype, self._first_weight.device
        network_inputs = (
            torch.stack([row.x for row in rows]).to(device, dtype),
            _stack_timesteps(rows, device),
            *self.functions.join_rows([row.conditioning for row in rows]).to(device, dtype).values,
        )
        row_adapter_mixes = [row.adapters for row in rows]
        cached_features = [row.cached_features for row in rows if row.cached_features is not None]
        if cached_features and self._deepcache is not None:
            with self._deepcache.replace_features(torch.stack(cached_features)):
                return self._run_network(network_inputs, row_adapter_mixes, self._deepcache.network)
        if self._deepcache is None or not any(row.returns_features for row in rows):
            traced_output = (
                None
                if self._is_mixed
                else self._recorded(*network_inputs, adapters=row_adapter_mixes)
            )
            return (
                self._run_network(network_inputs, row_adapter_mixes)
                if traced_output is None
                else traced_output
            )
        with self._deepcache.collect_features() as collected_features:
            prediction = self._run_network(network_inputs, row_adapter_mixes)
        for row, features in zip(rows, collected_features[0], strict=True):
            row.cached_features = features if row.returns_features else None
        return prediction

    def _run_network(
        self, inputs: tuple[Tensor, ...], adapters: list[AdapterMix], replacement: Any = None
    ) -> Tensor:
        network = self.adapted.network if replacement is None else replacement
        denoiser_function = self.functions.denoiser_function(network)
        with autocast_mixed(network) if self._is_mixed else nullcontext():
            return torch.as_tensor(
                self.adapted(*inputs, adapters=adapters, replacement=denoiser_function)
            )


def _stack_timesteps(rows: list[ForwardRow], device: torch.device) -> Tensor:
    """(R,) float32; rows have numbers alone, or tensors alone."""
    timesteps = [row.timestep for row in rows]
    timestep_tensors = [time for time in timesteps if isinstance(time, Tensor)]
    if len(timestep_tensors) == len(timesteps):
        return torch.stack(timestep_tensors)
    return torch.tensor(timesteps, dtype=torch.float32, device=device)
