"""A network and its adapters: each row of a forward goes through its own."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from dreambooth_ray.compat.peft import mixed_adapters, unload_adapters
from dreambooth_ray.errors import ConfigError
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

        replacement: a module over the same layers, to call in its place
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
