"""One UNet forward for many requests, each with its own time, prompt and adapter.

Legend: R rows of a forward, C latent channels, h, w latent sides, T tokens, D width, F
features before the last block.
"""

import warnings
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import PeftConfig, PeftModel
from torch import Tensor

from dreambooth_ray.compat.peft import mixed_adapters, unload_adapters
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.graphed_forward import GraphedForward
from dreambooth_ray.models.precision import autocast_mixed, has_mixed_dtypes
from dreambooth_ray.models.traced_forward import WARMUP_CALLS, PlainUNet, TracedForward
from dreambooth_ray.sampling.deepcache import DeepCache
from dreambooth_ray.sampling.lora_batching import AdapterNames, LoraBatch


class AdaptedNetwork:
    """A network and its LoRA adapters; rows of different adapters share a forward.

    Adapters that peft can't mix in one forward (DoRA) run in a separate one.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self._wrapped: PeftModel | None = None
        # Runs all loaded adapters in one forward.
        self.lora_batch: LoraBatch | None = None
        self._unbatchable: set[str] = set()
        self.names: set[str] = set()

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load a folder in peft's format under a name.

        raises: ConfigError if it holds no safetensors adapter, or doesn't fit the network
        """
        if not (folder / "adapter_model.safetensors").is_file():
            raise ConfigError(
                f"adapter {name!r}: {folder} has no adapter_model.safetensors (peft's format; "
                "pickled weights are not read)"
            )
        config = PeftConfig.from_pretrained(folder)
        try:
            if self._wrapped is None:
                self._wrapped = PeftModel.from_pretrained(
                    self.network, folder, adapter_name=name, use_safetensors=True
                )
            else:
                self._wrapped.load_adapter(folder, adapter_name=name, use_safetensors=True)
        except (RuntimeError, ValueError) as error:
            self._drop_adapter(name)
            raise ConfigError(f"adapter {name!r} does not fit this model: {error}") from error
        self._wrapped.eval().requires_grad_(False)
        self.lora_batch = LoraBatch(self._wrapped)
        self.names.add(name)
        if getattr(config, "use_dora", False):
            self._unbatchable.add(name)

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter; an unknown name is no error."""
        if name in self.names:
            self._drop_adapter(name)

    def _drop_adapter(self, name: str) -> None:
        self.names.discard(name)
        self._unbatchable.discard(name)
        if self._wrapped is None:
            return
        if self.names:
            # peft warns which adapter is active now; here every row names its own.
            with suppress(ValueError), warnings.catch_warnings(action="ignore"):
                self._wrapped.delete_adapter(name)
            self.lora_batch = LoraBatch(self._wrapped)
            return
        self.network = unload_adapters(self._wrapped)
        self._wrapped = self.lora_batch = None

    def is_unbatchable(self, adapter: str | None) -> bool:
        """Whether rows of an adapter can't share a forward with others."""
        return adapter in self._unbatchable

    def loaded_names(self, adapters: list[str | None]) -> AdapterNames:
        """The adapter name of each row, None where that adapter was removed."""
        return tuple(a if a in self.names else None for a in adapters)

    def find_batch(self, adapter_names: AdapterNames) -> LoraBatch | None:
        """The LoraBatch that runs these adapters; None where peft must do it."""
        if (
            self.lora_batch is None
            or adapter_names[0] in self._unbatchable
            or not self.lora_batch.supports(adapter_names)
        ):
            return None
        return self.lora_batch

    def __call__(
        self, *inputs: Any, adapters: list[str | None], replacement: Any = None, **options: Any
    ) -> Any:
        """The network's output for rows of one group.

        replacement: a network with the same layers, to run in its place
        """
        network = replacement or self.network
        if self._wrapped is None:
            return network(*inputs, **options)
        adapter_names = self.loaded_names(adapters)
        if lora_batch := self.find_batch(adapter_names):
            with lora_batch.route_rows(adapter_names):
                return network(*inputs, **options)
        if adapter_names[0] in self._unbatchable:
            self._wrapped.set_adapter(adapter_names[0])
            return network(*inputs, **options)
        with mixed_adapters(self._wrapped, adapter_names):
            return network(*inputs, **options)


@dataclass
class ForwardRow:
    """One row of a forward.

    x:                (in_channels, h, w); prompt_embeds: (T, D); timestep: a number or ()
    returns_features: whether the forward stores its features in `cached_features`
    cached_features:  (F, h, w) to use instead of the UNet's middle, or None
    """

    x: Tensor
    timestep: float | Tensor
    prompt_embeds: Tensor
    adapter: str | None = None
    returns_features: bool = False
    cached_features: Tensor | None = None


class _LoraUNet(PlainUNet):
    """A UNet that takes the weights of `LoraBatch.weights` as inputs."""

    def __init__(self, adapted: AdaptedNetwork) -> None:
        super().__init__(adapted.network)
        self._adapted = adapted

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor, *weights: Tensor) -> Tensor:
        if self._adapted.lora_batch is not None:
            self._adapted.lora_batch.replace_weights(weights)
        return super().forward(x, time, hidden)


class _RecordedUNet:
    """The whole UNet by recordings, one for each set of layers with adapters.

    A recording is a trace on a CPU, and CUDA graphs on a GPU. It stays valid when adapters come
    and go: their weights are inputs of it.
    """

    def __init__(self, adapted: AdaptedNetwork, warmup_calls: int, is_gpu: bool) -> None:
        self._adapted, self._warmup_calls, self._is_gpu = adapted, warmup_calls, is_gpu
        self._recordings: dict[tuple[str, ...], TracedForward | GraphedForward] = {}

    def __call__(self, *inputs: Tensor, adapters: list[str | None]) -> Tensor | None:
        """The UNet's output for rows of one group; None where peft must run their adapters."""
        adapted = self._adapted
        if adapted.lora_batch is None:
            return self._recording(())(*inputs)
        adapter_names = adapted.loaded_names(adapters)
        if (lora_batch := adapted.find_batch(adapter_names)) is None:
            return None
        with lora_batch.route_rows(adapter_names):
            return self._recording(lora_batch.active_layers())(*inputs, *lora_batch.weights())

    def _recording(self, layer_names: tuple[str, ...]) -> TracedForward | GraphedForward:
        if layer_names not in self._recordings:
            network = _LoraUNet(self._adapted)
            self._recordings[layer_names] = (
                GraphedForward(network)
                if self._is_gpu
                else TracedForward(network, self._warmup_calls)
            )
        return self._recordings[layer_names]


class Denoiser:
    """The UNet as the engine calls it."""

    def __init__(self, unet: UNet2DConditionModel, warmup_calls: int = WARMUP_CALLS) -> None:
        """warmup_calls: forwards before the UNet is traced."""
        self.adapted = AdaptedNetwork(unet)
        self._deepcache = DeepCache(unet)
        self._first_weight = unet.conv_in.weight
        # As in training, where what is frozen is in half and what is trained is not.
        self._is_mixed = has_mixed_dtypes(unet)
        is_gpu = self._first_weight.device.type == "cuda"
        self._recorded_unet = _RecordedUNet(self.adapted, warmup_calls, is_gpu)
        self.in_channels = int(unet.config.in_channels)

    @torch.no_grad()
    def __call__(self, rows: list[ForwardRow]) -> Tensor:
        """(R, C, h, w) float32 predictions; fills row.cached_features."""
        groups = self._group_rows(rows)
        if len(groups) == 1:
            return self._predict_group(rows).float()
        prediction_by_row: dict[int, Tensor] = {}
        for indices in groups:
            prediction = self._predict_group([rows[i] for i in indices]).float()
            prediction_by_row.update(zip(indices, prediction, strict=True))
        return torch.stack([prediction_by_row[i] for i in range(len(rows))])

    def _group_rows(self, rows: list[ForwardRow]) -> list[list[int]]:
        """Rows that share a forward: one prompt length, adapters that mix, all or none cached."""
        groups: dict[tuple[int, str | None, bool], list[int]] = {}
        for index, row in enumerate(rows):
            unbatchable_adapter = row.adapter if self.adapted.is_unbatchable(row.adapter) else None
            groups.setdefault(
                (len(row.prompt_embeds), unbatchable_adapter, row.cached_features is None), []
            ).append(index)
        return list(groups.values())

    def _predict_group(self, rows: list[ForwardRow]) -> Tensor:
        dtype, device = self._first_weight.dtype, self._first_weight.device
        inputs = (
            torch.stack([row.x for row in rows]).to(device, dtype),
            _stack_timesteps(rows, device),
            torch.stack([row.prompt_embeds for row in rows]).to(device, dtype),
        )
        adapters = [row.adapter for row in rows]
        cached_features = [row.cached_features for row in rows if row.cached_features is not None]
        if cached_features:
            with self._deepcache.replace_features(torch.stack(cached_features)):
                return self._run_network(inputs, adapters, self._deepcache.network)
        if not any(row.returns_features for row in rows):
            recorded_output = (
                None if self._is_mixed else self._recorded_unet(*inputs, adapters=adapters)
            )
            return (
                self._run_network(inputs, adapters) if recorded_output is None else recorded_output
            )
        with self._deepcache.collect_features() as collected:
            prediction = self._run_network(inputs, adapters)
        for row, features in zip(rows, collected[0], strict=True):
            row.cached_features = features if row.returns_features else None
        return prediction

    def _run_network(
        self, inputs: tuple[Tensor, ...], adapters: list[str | None], replacement: Any = None
    ) -> Tensor:
        autocast = autocast_mixed(self.adapted.network) if self._is_mixed else nullcontext()
        with autocast:
            outputs = self.adapted(
                *inputs, return_dict=False, adapters=adapters, replacement=replacement
            )
        return torch.as_tensor(outputs[0])


def _stack_timesteps(rows: list[ForwardRow], device: torch.device) -> Tensor:
    """(R,) float32; rows have numbers alone, or tensors alone."""
    timesteps = [row.timestep for row in rows]
    tensors = [time for time in timesteps if isinstance(time, Tensor)]
    if len(tensors) == len(timesteps):
        return torch.stack(tensors)
    return torch.tensor(timesteps, dtype=torch.float32, device=device)
