"""The adapters that an engine has loaded, each over all networks that it changes."""

from pathlib import Path

from dreambooth_ray.adapters.adapter import Adapter, read_adapter
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.config.adapter_mix import AdapterMix
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.adapter_folder_checks import refuse_words_and_schedule


class LoadedAdapters:
    """`text_encoders`: with their adapters, by the name of their folder."""

    def __init__(
        self, parts: Components, denoiser: AdaptedNetwork, directory: Path | None = None
    ) -> None:
        """directory: the model's, whose layers files call by more names than diffusers' then"""
        self._family, self._denoiser = parts.family, denoiser
        self.text_encoders = {
            name: AdaptedNetwork(encoder) for name, encoder in parts.text_encoders.items()
        }
        networks = {self._family.denoiser.name: parts.denoiser, **parts.text_encoders}
        weight_shapes = {
            part: {name: tuple(weight.shape) for name, weight in network.named_parameters()}
            for part, network in networks.items()
        }
        self._table = LayerTable(self._family, weight_shapes, directory)
        self.num_bytes: dict[str, int] = {}

    def add(self, name: str, path: Path) -> None:
        """Load an adapter: a file, a folder of peft's, or one with such a folder for each part.

        raises: ConfigError naming what binds nowhere, is of another model, or brings learned words
        """
        if path.is_dir():
            refuse_words_and_schedule(path)
        try:
            self._add_layers(name, read_adapter(path, self._table))
        except ConfigError as error:
            raise ConfigError(f"adapter {name!r}: {path}: {error}") from error

    def _add_layers(self, name: str, adapter: Adapter) -> None:
        self._denoiser.add_adapter(name, adapter.of_part(self._family.denoiser.name))
        for part, text_encoder in self.text_encoders.items():
            if layer_adapters := adapter.of_part(part):
                text_encoder.add_adapter(name, layer_adapters)
        self.num_bytes[name] = adapter.num_bytes

    def remove(self, name: str) -> None:
        """Drop an adapter; an unknown name is no error."""
        self.num_bytes.pop(name, None)
        for network in (self._denoiser, *self.text_encoders.values()):
            network.remove_adapter(name)

    def check_loaded(self, mix: AdapterMix) -> None:
        """raises: ConfigError for one that is not loaded"""
        for adapter_use in mix:
            if adapter_use.name not in self._denoiser.names:
                loaded_names = ", ".join(sorted(self._denoiser.names)) or "none"
                raise ConfigError(
                    f"adapter={adapter_use.name!r} is not loaded; there is {loaded_names}"
                )
