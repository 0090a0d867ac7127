"""The adapters that a replica has loaded on its engines.

Bounded in number and in bytes; what was unused for longest goes first, and never what is in use.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.errors import CapacityError, ConfigError
from dreambooth_ray.sampling.engine import Engine

# Id of an engine, and the adapter's name on it.
_Key = tuple[str, str]


@dataclass
class LoadedAdapter:
    """An adapter on an engine. weights_sha256: of base and adapter together, or of a file."""

    engine: Engine
    weights_sha256: str
    size_bytes: int
    num_users: int = 0


def count_file_bytes(path: Path) -> int:
    """Of an adapter's file, or of all files of its folder."""
    adapter_files = (
        [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    )
    return sum(file.stat().st_size for file in adapter_files)


class AdapterCache:
    """Finds, loads and evicts adapters. Thread-safe; who loads holds a lock of his own."""

    def __init__(self, max_adapters: int, max_bytes: int) -> None:
        self._max_adapters, self._max_bytes = max_adapters, max_bytes
        self._loaded: OrderedDict[_Key, LoadedAdapter] = OrderedDict()
        self._lock = threading.RLock()

    def acquire(self, engine_id: str, name: str) -> LoadedAdapter | None:
        """One that is loaded; it stays until `release`."""
        with self._lock:
            loaded_adapter = self._loaded.get((engine_id, name))
            if loaded_adapter is not None:
                loaded_adapter.num_users += 1
                self._loaded.move_to_end((engine_id, name))
            return loaded_adapter

    def release(self, adapter: LoadedAdapter) -> None:
        """Give back what `acquire` gave."""
        with self._lock:
            adapter.num_users -= 1

    def add(self, engine_id: str, engine: Engine, name: str, path: Path, sha256: str) -> None:
        """Load a file or a folder of adapters on an engine.

        raises: ConfigError for what does not fit the model or the bounds, CapacityError where
            all that is loaded is in use
        """
        size_bytes = count_file_bytes(path)
        self._make_room(size_bytes, name)
        try:
            engine.add_adapter(name, path)
        except ConfigError as error:  # who asks is told of names alone, not of this host's folders
            raise ConfigError(
                str(error).replace(f"{path}: ", "").replace(str(path), name)
            ) from error
        with self._lock:
            self._loaded[engine_id, name] = LoadedAdapter(engine, sha256, size_bytes)

    def _make_room(self, size_bytes: int, name: str) -> None:
        if size_bytes > self._max_bytes:
            raise ConfigError(
                f"adapter {name} has {size_bytes} bytes, and replicas.adapter_bytes is "
                f"{self._max_bytes}; raise it, or `dreambooth resize` the adapter"
            )
        while True:
            with self._lock:
                is_cache_full = len(self._loaded) >= self._max_adapters
                if not is_cache_full and self.size_bytes + size_bytes <= self._max_bytes:
                    return
                idle_adapter_keys = [
                    adapter_key
                    for adapter_key, adapter in self._loaded.items()
                    if not adapter.num_users
                ]
                if not idle_adapter_keys:
                    raise CapacityError(
                        f"adapter {name} waits: {len(self._loaded)} adapters are in use"
                    )
                evicted_adapter = self._loaded.pop(idle_adapter_keys[0])
            evicted_adapter.engine.remove_adapter(idle_adapter_keys[0][1])

    def forget_engine_adapters(self, engine_id: str) -> None:
        """Forget the adapters of an engine that is closed."""
        with self._lock:
            for cache_key in [cache_key for cache_key in self._loaded if cache_key[0] == engine_id]:
                del self._loaded[cache_key]

    def names(self, engine_id: str) -> list[str]:
        """Of the adapters on an engine."""
        with self._lock:
            return [name for owner, name in self._loaded if owner == engine_id]

    @property
    def size_bytes(self) -> int:
        """Of all loaded adapters."""
        with self._lock:
            return sum(adapter.size_bytes for adapter in self._loaded.values())
