"""One UNet forward for many requests, each with its own time, prompt and adapter.

Legend: R rows of a forward, C latent channels, h, w latent sides, T tokens, D width, F
features before the last block.
"""

import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import PeftConfig, PeftModel
from torch import Tensor

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.traced_forward import WARMUP_CALLS, Plain, TracedForward
from dreambooth_ray.sampling.deepcache import DeepCache
from dreambooth_ray.sampling.lora_batching import LoraBatch, Names

_BASE = "__base__"


class Adapted:
    """A network and the LoRA adapters on it; adapters of different rows share a forward.

    adapters that peft can't mix (DoRA) get a forward of their own
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self._wrapped: PeftModel | None = None
        # Mixes what adapters there are.
        self.mixer: LoraBatch | None = None
        self._apart: set[str] = set()
        self.names: set[str] = set()

    def add(self, name: str, folder: Path) -> None:
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
            self._drop(name)
            raise ConfigError(f"adapter {name!r} does not fit this model: {error}") from error
        self._wrapped.eval().requires_grad_(False)
        self.mixer = LoraBatch(self._wrapped)
        self.names.add(name)
        if getattr(config, "use_dora", False):
            self._apart.add(name)

    def remove(self, name: str) -> None:
        """Forget an adapter; unknown names are no error."""
        if name in self.names:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self.names.discard(name)
        self._apart.discard(name)
        if self._wrapped is None:
            return
        if self.names:
            # peft says which adapter is active now; here every row says that itself.
            with suppress(ValueError), warnings.catch_warnings(action="ignore"):
                self._wrapped.delete_adapter(name)
            self.mixer = LoraBatch(self._wrapped)
            return
        self.network = self._wrapped.unload()
        # peft leaves its mark on the network, which would be taken for an adapter.
        with suppress(AttributeError):
            del self.network.peft_config
        self._wrapped = self.mixer = None

    def stands_apart(self, adapter: str | None) -> bool:
        """Whether rows of an adapter can't share a forward with others."""
        return adapter in self._apart

    def known(self, adapters: list[str | None]) -> Names:
        """The adapters of a group's rows, None for those that are gone."""
        return tuple(a if a in self.names else None for a in adapters)

    def mixing(self, known: Names) -> LoraBatch | None:
        """What mixes these adapters; None where that is left to peft."""
        if self.mixer is None or known[0] in self._apart or not self.mixer.can(known):
            return None
        return self.mixer

    def __call__(
        self, *inputs: Any, adapters: list[str | None], instead: Any = None, **options: Any
    ) -> Any:
        """The network's output for rows of one group.

        instead: a network that shares its layers, to run in its place
        """
        network = instead or self.network
        if self._wrapped is None:
            return network(*inputs, **options)
        known = self.known(adapters)
        if mixing := self.mixing(known):
            with mixing.rows(known):
                return network(*inputs, **options)
        if known[0] in self._apart:
            self._wrapped.set_adapter(known[0])
            return network(*inputs, **options)
        # What PeftModel.forward does, for a network that may be another than its own.
        names = [a or _BASE for a in known]
        with self._wrapped._enable_peft_forward_hooks(adapter_names=names):
            return network(*inputs, **options)


@dataclass
class Row:
    """One row of a forward.

    x:      (in_channels, h, w); hidden: (T, D)
    keeps:  whether its deep features are wanted afterwards, in `deep`
    deep:   (F, h, w) features to use instead of the UNet's middle, or None
    """

    x: Tensor
    timestep: float
    hidden: Tensor
    adapter: str | None = None
    keeps: bool = False
    deep: Tensor | None = None


class _Mixed(Plain):
    """With the adapters' weights, as `Mixing.weights` lists them, among its inputs."""

    def __init__(self, adapted: Adapted) -> None:
        super().__init__(adapted.network)
        self._adapted = adapted

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor, *weights: Tensor) -> Tensor:
        if self._adapted.mixer is not None:
            self._adapted.mixer.give(weights)
        return super().forward(x, time, hidden)


class _Recorded:
    """The whole UNet by recordings, one for each set of layers in which adapters mix.

    A recording outlives adapters that come and go: their weights are among its inputs.
    """

    def __init__(self, adapted: Adapted, worth: int) -> None:
        self._adapted, self._worth = adapted, worth
        self._recorders: dict[tuple[str, ...], TracedForward] = {}

    def __call__(self, *inputs: Tensor, adapters: list[str | None]) -> Tensor | None:
        """The UNet's output for rows of one group; None where peft mixes their adapters."""
        adapted = self._adapted
        if adapted.mixer is None:
            return self._recorder(())(*inputs)
        known = adapted.known(adapters)
        if (mixing := adapted.mixing(known)) is None:
            return None
        with mixing.rows(known):
            return self._recorder(mixing.pattern())(*inputs, *mixing.weights())

    def _recorder(self, pattern: tuple[str, ...]) -> TracedForward:
        if pattern not in self._recorders:
            self._recorders[pattern] = TracedForward(_Mixed(self._adapted), self._worth)
        return self._recorders[pattern]


class Denoiser:
    """The UNet as the engine calls it."""

    def __init__(self, unet: UNet2DConditionModel, worth: int = WARMUP_CALLS) -> None:
        """worth: forwards before one is recorded."""
        self.adapted = Adapted(unet)
        self._shortcut, self._recorded = DeepCache(unet), _Recorded(self.adapted, worth)
        self._first = unet.conv_in.weight
        self.in_channels = int(unet.config.in_channels)

    @torch.no_grad()
    def __call__(self, rows: list[Row]) -> Tensor:
        """(R, C, h, w) float32 predictions on the CPU, and row.deep where row.keeps."""
        groups = self._groups(rows)
        if len(groups) == 1:
            return self._forward(rows).float().cpu()
        found: dict[int, Tensor] = {}
        for places in groups:
            prediction = self._forward([rows[i] for i in places]).float().cpu()
            found.update(zip(places, prediction, strict=True))
        return torch.stack([found[i] for i in range(len(rows))])

    def _groups(self, rows: list[Row]) -> list[list[int]]:
        """Rows that can share a forward: prompts of one length, adapters that mix, one depth."""
        groups: dict[tuple[int, str | None, bool], list[int]] = {}
        for place, row in enumerate(rows):
            apart = row.adapter if self.adapted.stands_apart(row.adapter) else None
            groups.setdefault((len(row.hidden), apart, row.deep is None), []).append(place)
        return list(groups.values())

    def _forward(self, rows: list[Row]) -> Tensor:
        dtype, device = self._first.dtype, self._first.device
        inputs = (
            torch.stack([row.x for row in rows]).to(device, dtype),
            torch.tensor([row.timestep for row in rows], dtype=torch.float32, device=device),
            torch.stack([row.hidden for row in rows]).to(device, dtype),
        )
        adapters = [row.adapter for row in rows]
        deep = [row.deep for row in rows if row.deep is not None]
        if deep:
            with self._shortcut.giving(torch.stack(deep)):
                return self._run(inputs, adapters, self._shortcut.network)
        if not any(row.keeps for row in rows):
            # On a GPU Python runs ahead of the device, so that there is less to gain.
            found = self._recorded(*inputs, adapters=adapters) if device.type == "cpu" else None
            return self._run(inputs, adapters) if found is None else found
        with self._shortcut.keeping() as kept:
            prediction = self._run(inputs, adapters)
        for row, features in zip(rows, kept[0], strict=True):
            row.deep = features if row.keeps else None
        return prediction

    def _run(
        self, inputs: tuple[Tensor, ...], adapters: list[str | None], instead: Any = None
    ) -> Tensor:
        found = self.adapted(*inputs, return_dict=False, adapters=adapters, instead=instead)
        return torch.as_tensor(found[0])
