"""One UNet forward for many requests, each with its own time, prompt and adapter.

Legend: R rows of a forward, C latent channels, h, w latent sides, T tokens, D width.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import PeftConfig, PeftModel
from torch import Tensor

from dreambooth_ray.errors import ConfigError

_BASE = "__base__"


class Adapted:
    """A network and the LoRA adapters on it; adapters of different rows share a forward.

    adapters that peft can't mix (DoRA) get a forward of their own
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self._wrapped: PeftModel | None = None
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
            with suppress(ValueError):
                self._wrapped.delete_adapter(name)
            return
        self.network = self._wrapped.unload()
        # peft leaves its mark on the network, which would be taken for an adapter.
        with suppress(AttributeError):
            del self.network.peft_config
        self._wrapped = None

    def stands_apart(self, adapter: str | None) -> bool:
        """Whether rows of an adapter can't share a forward with others."""
        return adapter in self._apart

    def __call__(self, *inputs: Any, adapters: list[str | None], **options: Any) -> Any:
        """The network's output for rows of one group."""
        if self._wrapped is None:
            return self.network(*inputs, **options)
        known = [a if a in self.names else None for a in adapters]
        if known[0] in self._apart:
            self._wrapped.set_adapter(known[0])
            return self._wrapped(*inputs, **options)
        names = [a or _BASE for a in known]
        return self._wrapped(*inputs, adapter_names=names, **options)


class Denoiser:
    """The UNet as the engine calls it."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.adapted = Adapted(unet)
        self._first = unet.conv_in.weight
        self.in_channels = int(unet.config.in_channels)

    @torch.no_grad()
    def __call__(
        self, x: Tensor, timesteps: Tensor, hidden: list[Tensor], adapters: list[str | None]
    ) -> Tensor:
        """(R, C, h, w) float32 prediction for rows x (R, in_channels, h, w).

        timesteps: (R,) float32; hidden: R times (T, D), rows of one T share a forward
        """
        dtype, device = self._first.dtype, self._first.device
        x, timesteps = x.to(device, dtype), timesteps.to(device)
        parts: dict[int, Tensor] = {}
        for rows in self._groups(hidden, adapters):
            chosen = slice(None) if len(rows) == len(x) else rows
            (prediction,) = self.adapted(
                x[chosen],
                timesteps[chosen],
                torch.stack([hidden[i] for i in rows]).to(device, dtype),
                return_dict=False,
                adapters=[adapters[i] for i in rows],
            )
            if len(rows) == len(x):
                return torch.as_tensor(prediction).float()
            parts.update(zip(rows, prediction.float(), strict=True))
        return torch.stack([parts[i] for i in range(len(x))])

    def _groups(self, hidden: list[Tensor], adapters: list[str | None]) -> list[list[int]]:
        """Rows that can share a forward: prompts of one length, adapters that mix."""
        groups: dict[tuple[int, str | None], list[int]] = {}
        for row, (embedded, adapter) in enumerate(zip(hidden, adapters, strict=True)):
            apart = adapter if self.adapted.stands_apart(adapter) else None
            groups.setdefault((len(embedded), apart), []).append(row)
        return list(groups.values())
