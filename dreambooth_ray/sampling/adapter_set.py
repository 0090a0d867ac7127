"""The adapters that an engine has loaded, each over all networks that it changes."""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.adapter_folder import check_adapter_folder


class AdapterSet:
    """`text_encoders`: with their adapters, by the name of their folder."""

    def __init__(self, parts: Components, denoiser: AdaptedNetwork) -> None:
        self._denoiser, self._denoiser_name = denoiser, parts.family.denoiser.name
        self.text_encoders = {
            name: AdaptedNetwork(encoder) for name, encoder in parts.text_encoders.items()
        }

    def add(self, name: str, folder: Path) -> None:
        """Load a folder for each part that the adapter changes, in peft's format.

        raises: ConfigError if it is no LoRA, of another model, or has learned words
        """
        check_adapter_folder(folder)
        self._denoiser.add_adapter(name, folder / self._denoiser_name)
        for part, encoder in self.text_encoders.items():
            if (folder / part).is_dir():
                encoder.add_adapter(name, folder / part)

    def remove(self, name: str) -> None:
        """Drop an adapter; an unknown name is no error."""
        for network in (self._denoiser, *self.text_encoders.values()):
            network.remove_adapter(name)

    def check(self, name: str | None) -> None:
        """raises: ConfigError for one that is not loaded"""
        if name is not None and name not in self._denoiser.names:
            loaded_names = ", ".join(sorted(self._denoiser.names)) or "none"
            raise ConfigError(f"adapter={name!r} is not loaded; there is {loaded_names}")
