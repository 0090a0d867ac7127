"""The models a replica has loaded: engines by base or full model, adapters on their bases.

Bounded in bytes and in adapters; what was unused for longest goes first, and never
what is in use.
"""

import hashlib
import json
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth_ray.errors import CapacityError, CheckpointError, ConfigError
from dreambooth_ray.models import tokens
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import (
    base_directory,
    has_model_hash,
    model_directory,
    model_hash,
)
from dreambooth_ray.models.model_mirror import share_model
from dreambooth_ray.models.model_source import parse_source
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.artifact_files import download_whole
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store
from serve.replica_messages import Artifact

_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1}


def estimate_loaded_bytes(directory: Path, bytes_per_weight: int) -> int:
    """Bytes that a model's weights take once loaded, by the headers of its safetensors files.

    raises: ConfigError naming a file that is missing or cut off
    """
    return sum(
        size_bytes // _DTYPE_BYTES.get(dtype, 1) * bytes_per_weight
        for part in find_family(directory).networks
        for dtype, size_bytes in find_weights(directory / part.name, part.name)
        .count_bytes()
        .items()
    )


@dataclass
class LoadedModel:
    """An engine, and how many images are being sampled with it."""

    engine: Engine
    size_bytes: int
    base_hash: str | None
    num_users: int = 0
    adapters: "OrderedDict[str, LoadedAdapter]" = field(default_factory=OrderedDict)


@dataclass
class LoadedAdapter:
    """An adapter on an engine. weights_sha256: of base and adapter together."""

    weights_sha256: str
    num_users: int = 0


@dataclass(frozen=True)
class ModelLease:
    """The engine and adapter that an image is sampled with."""

    engine: Engine
    adapter: str | None
    weights_sha256: str
    base_sha256: str | None


class ModelCache:
    """Loads, finds and evicts. Thread-safe; loading one model does not hold up the others' use."""

    def __init__(
        self,
        bases: dict[str, str],
        storage_uri: str,
        cache: Path,
        open_engine: Callable[[Path], Engine],
        *,
        memory_bytes: int,
        max_adapters: int,
        bytes_per_weight: int = 4,
        shares_models: bool = False,
    ) -> None:
        """bases: URI by id; cache: a folder of this replica's own; open_engine: starts one

        shares_models: replicas on other hosts take theirs from the storage, where one puts them
        """
        self._bases, self._storage_uri, self._cache = bases, storage_uri, cache
        self._open_engine, self._bytes_per_weight = open_engine, bytes_per_weight
        self._memory_bytes, self._max_adapters = memory_bytes, max_adapters
        self._shares_models = shares_models
        self._engines: OrderedDict[str, LoadedModel] = OrderedDict()
        # _state_lock protects the dictionaries; _load_lock lets one load run at a time.
        self._state_lock, self._load_lock = threading.RLock(), threading.Lock()

    @contextmanager
    def lease(self, artifact: Artifact) -> Iterator[ModelLease]:
        """Lease what samples an artifact; it stays loaded for the length of the block.

        raises: CheckpointError if it is damaged, ConfigError, CapacityError
        """
        acquired = self._acquire_lease(artifact)
        if acquired is None:
            with self._load_lock:
                acquired = self._acquire_lease(artifact)
                if acquired is None:
                    self._load_artifact(artifact)
                    acquired = self._acquire_lease(artifact)
        if acquired is None:
            raise CapacityError(f"model {artifact.id} was evicted while it was loaded; ask again")
        loaded, lease = acquired
        try:
            yield lease
        finally:
            with self._state_lock:
                loaded.num_users -= 1
                if lease.adapter is not None:
                    loaded.adapters[lease.adapter].num_users -= 1

    @property
    def loaded_ids(self) -> tuple[str, ...]:
        """Ids of what is loaded, adapters included."""
        with self._state_lock:
            adapters = [name for e in self._engines.values() for name in e.adapters]
            return (*self._engines, *adapters)

    @property
    def size_bytes(self) -> int:
        """Weights of all loaded engines."""
        with self._state_lock:
            return sum(e.size_bytes for e in self._engines.values())

    @property
    def engines(self) -> list[Engine]:
        """All loaded engines."""
        with self._state_lock:
            return [e.engine for e in self._engines.values()]

    def list_engines(self) -> list[tuple[tuple[str, ...], Engine]]:
        """Loaded engines, each with its id and those of its adapters."""
        with self._state_lock:
            return [((id_, *e.adapters), e.engine) for id_, e in self._engines.items()]

    def close(self) -> None:
        """Stop all engines and remove the cache."""
        for engine in self.engines:
            engine.close()
        shutil.rmtree(self._cache, ignore_errors=True)

    def _acquire_lease(self, artifact: Artifact) -> tuple[LoadedModel, ModelLease] | None:
        with self._state_lock:
            for id_, loaded in self._engines.items():
                if id_ == artifact.id:
                    lease = ModelLease(loaded.engine, None, loaded.engine.model_hash, None)
                elif artifact.id in loaded.adapters:
                    adapter = loaded.adapters[artifact.id]
                    adapter.num_users += 1
                    loaded.adapters.move_to_end(artifact.id)
                    base = loaded.engine.model_hash
                    lease = ModelLease(loaded.engine, artifact.id, adapter.weights_sha256, base)
                else:
                    continue
                loaded.num_users += 1
                self._engines.move_to_end(id_)
                return loaded, lease
        return None

    def _load_artifact(self, artifact: Artifact) -> None:
        if artifact.uri is not None:
            directory = self._find_base(artifact.uri, "models")
            size = estimate_loaded_bytes(directory, self._bytes_per_weight)
            self._add_engine(artifact.id, directory, size, base=True)
            return
        directory = self._fetch_bundle(artifact)
        try:
            if (
                tokens.has_words(directory / paths.ADAPTER)
                or (directory / paths.ADAPTER_SCHEDULER).is_dir()
            ):
                # Learned words need a tokenizer, so an engine, of their own; so does a schedule.
                size = estimate_loaded_bytes(base_directory(directory), self._bytes_per_weight)
                self._add_engine(artifact.id, directory, size, base=False)
            elif (directory / paths.ADAPTER).is_dir():
                self._add_adapter(artifact.id, directory)
            else:
                size = estimate_loaded_bytes(directory, self._bytes_per_weight)
                self._add_engine(artifact.id, directory, size, base=False)
        finally:
            # Everything is in memory now; the next load verifies the bytes anew.
            shutil.rmtree(directory, ignore_errors=True)

    def _find_base(self, uri: str, key: str) -> Path:
        if self._shares_models and not parse_source(uri).is_directory:
            return share_model(uri, key, Store(self._storage_uri))
        return model_directory(uri, key)

    def _fetch_bundle(self, artifact: Artifact) -> Path:
        """Download a bundle, every file against the manifest the gateway saw."""
        store = Store(self._storage_uri)
        name = f"{artifact.folder}/{MANIFEST}"
        try:
            manifest = store.read(name)
        except FileNotFoundError as error:
            raise CheckpointError(f"model {artifact.id} is no longer in storage") from error
        if hashlib.sha256(manifest).hexdigest() != artifact.manifest_sha256:
            raise CheckpointError(f"model {artifact.id} has changed in storage; ask again")
        folder = self._cache / artifact.id
        shutil.rmtree(folder, ignore_errors=True)
        download_whole(store, str(artifact.folder), folder, manifest)
        return folder

    def _add_engine(self, id_: str, directory: Path, size_bytes: int, *, base: bool) -> None:
        self._make_room(size_bytes, id_)
        engine = self._open_engine(directory)
        digest = engine.model_hash
        with self._state_lock:
            self._engines[id_] = LoadedModel(engine, size_bytes, digest if base else None)

    def _make_room(self, size_bytes: int, id_: str) -> None:
        if size_bytes > self._memory_bytes:
            raise CapacityError(
                f"model {id_} takes {size_bytes} bytes and replicas.memory_bytes is "
                f"{self._memory_bytes}; raise it"
            )
        while True:
            with self._state_lock:
                if self.size_bytes + size_bytes <= self._memory_bytes:
                    return
                idle = [name for name, loaded in self._engines.items() if not loaded.num_users]
                if not idle:
                    raise CapacityError(f"model {id_} waits for memory that others draw with")
                evicted = self._engines.pop(idle[0])
            evicted.engine.close()

    def _add_adapter(self, id_: str, directory: Path) -> None:
        digest = str(json.loads((directory / MANIFEST).read_text())["about"]["base_hash"])
        loaded = self._get_base_model(digest, id_)
        with self._state_lock:
            idle = [name for name, adapter in loaded.adapters.items() if not adapter.num_users]
            full = len(loaded.adapters) >= self._max_adapters
            if full and not idle:
                raise CapacityError(f"model {id_} waits: {self._max_adapters} adapters are in use")
            if full:
                del loaded.adapters[idle[0]]
                loaded.engine.remove_adapter(idle[0])
        loaded.engine.add_adapter(id_, directory / paths.ADAPTER)
        with self._state_lock:
            loaded.adapters[id_] = LoadedAdapter(model_hash(directory))

    def _get_base_model(self, digest: str, id_: str) -> LoadedModel:
        """The engine of the base with this hash, loaded if it is not."""
        with self._state_lock:
            engines = [self._engines[base] for base in self._bases if base in self._engines]
        for engine in engines:
            if engine.base_hash == digest:
                return engine
        for base, uri in self._bases.items():
            with self._state_lock:
                loaded = self._engines.get(base)
            if loaded is None:
                directory = self._find_base(uri, f"models.{base}")
                if not has_model_hash(directory, digest):
                    continue
                size = estimate_loaded_bytes(directory, self._bytes_per_weight)
                self._add_engine(base, directory, size, base=True)
                return self._engines[base]
            if has_model_hash(self._find_base(uri, f"models.{base}"), digest):
                return loaded
        raise ConfigError(
            f"model {id_} adapts a base model that is not served here (hash {digest[:12]}); add it "
            "to `models`"
        )
