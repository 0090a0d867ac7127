"""The folder of adapter files that requests may name, and nothing beside it."""

import time
from pathlib import Path

from dreambooth_ray.adapters.adapter_source import (
    LocalAdapter,
    WeightedAdapterSource,
    hash_adapter,
    locate_adapter,
)
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.store_files import is_url

_KEY = "adapters.folder"


class AdapterFolder:
    """A folder of this host, or one at a URL."""

    def __init__(self, uri: str | None, refresh_s: float) -> None:
        """uri: None where requests may name no file

        refresh_s: how long a URL's file is believed
        """
        self._uri, self._refresh_s = uri, refresh_s
        self._fetched: dict[str, tuple[float, LocalAdapter]] = {}

    def locate(self, name: str) -> tuple[Path, str]:
        """A file by its name below the folder, and its SHA-256.

        raises: ConfigError for one that is not there, or lies elsewhere by a link; StorageError
        """
        if self._uri is None:
            raise ConfigError(
                f"adapters: file={name!r} is not taken here, as the endpoint has no {_KEY}"
            )
        if is_url(self._uri):
            adapter_path = self._fetch_adapter_file(name)
        else:
            adapter_folder = Path(self._uri).expanduser().resolve()
            adapter_path = (adapter_folder / name).resolve()
            if not (adapter_path.is_relative_to(adapter_folder) and adapter_path.is_file()):
                raise _adapter_not_found_error(name)
        return adapter_path, hash_adapter(adapter_path)

    def _fetch_adapter_file(self, name: str) -> Path:
        fetched_s, local_adapter = self._fetched.get(name, (0.0, None))
        if local_adapter is None or time.monotonic() - fetched_s > self._refresh_s:
            try:
                local_adapter = locate_adapter(WeightedAdapterSource(f"{self._uri}/{name}"), _KEY)
            except ConfigError as error:
                raise _adapter_not_found_error(name) from error
            self._fetched[name] = time.monotonic(), local_adapter
        return local_adapter.path


def _adapter_not_found_error(name: str) -> ConfigError:
    return ConfigError(f"adapters: there is no file={name!r}; ask who runs the endpoint for names")
