"""The models a replica has loaded: engines by base or full model, adapters on their bases.

Bounded in bytes; what was unused for longest goes first, and never what is in use.
"""

import hashlib
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from dreambooth_ray.config.adapter_mix import AdapterUse
from dreambooth_ray.errors import CapacityError, CheckpointError, ConfigError
from dreambooth_ray.models import tokens
from dreambooth_ray.models.model_directory import (
    adapted_base,
    base_directory,
    has_matching_hash,
    model_directory,
    model_hash,
)
from dreambooth_ray.models.model_mirror import share_model
from dreambooth_ray.models.model_source import parse_source
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.artifact_files import download_whole_artifact
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store
from serve.adapter_cache import AdapterCache, LoadedAdapter
from serve.allowed_adapters import AdapterFolder
from serve.loaded_model import LoadedModel, ModelLease, estimate_loaded_bytes
from serve.replica_messages import Artifact, RequestedAdapter


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
        adapters: AdapterCache,
        folder: AdapterFolder,
        bytes_per_weight: int = 4,
        shares_models: bool = False,
    ) -> None:
        """bases: URI by id; cache: a folder of this replica's own; open_engine: starts one

        folder: of the files that requests may name
        shares_models: replicas on other hosts take theirs from the storage, where one puts them
        """
        self._bases, self._storage_uri, self._cache = bases, storage_uri, cache
        self._open_engine, self._bytes_per_weight = open_engine, bytes_per_weight
        self._memory_bytes, self._adapters, self._folder = memory_bytes, adapters, folder
        self._shares_models = shares_models
        self._engines: OrderedDict[str, LoadedModel] = OrderedDict()
        # _state_lock protects the dictionaries; _load_lock lets one load run at a time.
        self._state_lock, self._load_lock = threading.RLock(), threading.Lock()

    @contextmanager
    def lease(
        self, artifact: Artifact, adapters: Sequence[RequestedAdapter] = ()
    ) -> Iterator[ModelLease]:
        """Lease what samples an artifact; it stays loaded for the length of the block.

        adapters: to sample with beside it
        raises: CheckpointError if it is damaged, ConfigError, CapacityError
        """
        with self._lease_model(artifact) as lease, ExitStack() as stack:
            adapter_mix, digests = list(lease.adapters), []
            for requested_adapter in adapters:
                name, digest = stack.enter_context(self._lease_adapter(lease, requested_adapter))
                adapter_mix.append(AdapterUse(name, requested_adapter.weight))
                digests.append(digest)
            yield replace(lease, adapters=tuple(adapter_mix), adapter_sha256s=tuple(digests))

    @contextmanager
    def _lease_adapter(
        self, lease: ModelLease, task: RequestedAdapter
    ) -> Iterator[tuple[str, str]]:
        """Name and SHA-256 of an adapter on the lease's engine."""
        path, digest = self._folder.locate(task.file) if task.file is not None else (None, None)
        name = f"{task.file}@{str(digest)[:12]}" if task.artifact is None else task.artifact.id
        adapter = self._adapters.acquire(lease.engine_id, name)
        if adapter is None:
            with self._load_lock:
                adapter = self._adapters.acquire(lease.engine_id, name)
                if adapter is None and path is not None and digest is not None:
                    self._adapters.add(lease.engine_id, lease.engine, name, path, digest)
                elif adapter is None and task.artifact is not None:
                    self._load_extra_adapter(lease, task.artifact)
                adapter = adapter or self._adapters.acquire(lease.engine_id, name)
        if adapter is None:
            raise CapacityError(f"adapter {name} was evicted while it was loaded; ask again")
        try:
            if task.sha256 not in (None, adapter.weights_sha256):
                raise ConfigError(
                    f"adapters: {task.file or name} has other weights now than sha256="
                    f"{task.sha256} asks for; leave sha256 out to take them"
                )
            yield name, adapter.weights_sha256
        finally:
            self._adapters.release(adapter)

    @contextmanager
    def _lease_model(self, artifact: Artifact) -> Iterator[ModelLease]:
        acquired_lease = self._acquire_lease(artifact)
        if acquired_lease is None:
            with self._load_lock:
                acquired_lease = self._acquire_lease(artifact)
                if acquired_lease is None:
                    self._load_artifact(artifact)
                    acquired_lease = self._acquire_lease(artifact)
        if acquired_lease is None:
            raise CapacityError(f"model {artifact.id} was evicted while it was loaded; ask again")
        loaded, lease, own_adapter = acquired_lease
        try:
            yield lease
        finally:
            with self._state_lock:
                loaded.num_users -= 1
            if own_adapter is not None:
                self._adapters.release(own_adapter)

    @property
    def loaded_ids(self) -> tuple[str, ...]:
        """Ids of what is loaded, adapters included."""
        with self._state_lock:
            adapter_ids = [name for id_ in self._engines for name in self._adapters.names(id_)]
            return (*self._engines, *adapter_ids)

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
            return [
                ((id_, *self._adapters.names(id_)), e.engine) for id_, e in self._engines.items()
            ]

    def close(self) -> None:
        """Stop all engines and remove the cache."""
        for engine in self.engines:
            engine.close()
        shutil.rmtree(self._cache, ignore_errors=True)

    def _acquire_lease(
        self, artifact: Artifact
    ) -> tuple[LoadedModel, ModelLease, LoadedAdapter | None] | None:
        with self._state_lock:
            for id_, loaded in self._engines.items():
                engine, adapter = loaded.engine, None
                if id_ == artifact.id:
                    lease = ModelLease(id_, engine, (), engine.model_hash, None)
                elif loaded.base_hash and (adapter := self._adapters.acquire(id_, artifact.id)):
                    mix, base_hash = (AdapterUse(artifact.id),), engine.model_hash
                    lease = ModelLease(id_, engine, mix, adapter.weights_sha256, base_hash)
                else:
                    continue
                loaded.num_users += 1
                self._engines.move_to_end(id_)
                return loaded, lease, adapter
        return None

    def _load_artifact(self, artifact: Artifact) -> None:
        if artifact.uri is not None:
            directory = self._find_base_folder(artifact.uri, "models")
            num_bytes = estimate_loaded_bytes(directory, self._bytes_per_weight)
            self._add_engine(artifact.id, directory, num_bytes, base=True)
            return
        directory = self._fetch_bundle(artifact)
        try:
            if (
                tokens.has_words(directory / paths.ADAPTER)
                or (directory / paths.ADAPTER_SCHEDULER).is_dir()
            ):
                # Learned words need a tokenizer, so an engine, of their own; so does a schedule.
                num_bytes = estimate_loaded_bytes(base_directory(directory), self._bytes_per_weight)
                self._add_engine(artifact.id, directory, num_bytes, base=False)
            elif (directory / paths.ADAPTER).is_dir():
                base_engine_id = self._find_base_engine(_read_base_hash(directory), artifact.id)
                self._add_adapter(base_engine_id, artifact.id, directory)
            else:
                num_bytes = estimate_loaded_bytes(directory, self._bytes_per_weight)
                self._add_engine(artifact.id, directory, num_bytes, base=False)
        finally:
            # Everything is in memory now; the next load verifies the bytes anew.
            shutil.rmtree(directory, ignore_errors=True)

    def _find_base_folder(self, uri: str, key: str) -> Path:
        if self._shares_models and not parse_source(uri).is_directory:
            return share_model(uri, key, Store(self._storage_uri))
        return model_directory(uri, key)

    def _fetch_bundle(self, artifact: Artifact) -> Path:
        """Download a bundle, every file against the manifest the gateway saw."""
        store = Store(self._storage_uri)
        manifest_path = f"{artifact.folder}/{MANIFEST}"
        try:
            manifest = store.read(manifest_path)
        except FileNotFoundError as error:
            raise CheckpointError(f"model {artifact.id} is no longer in storage") from error
        if hashlib.sha256(manifest).hexdigest() != artifact.manifest_sha256:
            raise CheckpointError(f"model {artifact.id} has changed in storage; ask again")
        bundle_folder = self._cache / artifact.id
        shutil.rmtree(bundle_folder, ignore_errors=True)
        download_whole_artifact(store, str(artifact.folder), bundle_folder, manifest)
        return bundle_folder

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
                idle_ids = [name for name, loaded in self._engines.items() if not loaded.num_users]
                if not idle_ids:
                    raise CapacityError(f"model {id_} waits for memory that others draw with")
                evicted_model = self._engines.pop(idle_ids[0])
                self._adapters.forget_engine_adapters(idle_ids[0])
            evicted_model.engine.close()

    def _load_extra_adapter(self, lease: ModelLease, artifact: Artifact) -> None:
        """Load another subject's adapters on an engine; raises ConfigError where they don't fit."""
        bundle_folder = self._fetch_bundle(artifact)
        try:
            base_hash = _read_base_hash(bundle_folder)
            with self._state_lock:
                loaded_base = self._engines[lease.engine_id]
            if base_hash != loaded_base.base_hash:
                raise ConfigError(
                    f"adapters: model {artifact.id} was trained on another base than the model "
                    "that is asked for"
                )
            self._add_adapter(lease.engine_id, artifact.id, bundle_folder)
        finally:
            shutil.rmtree(bundle_folder, ignore_errors=True)

    def _add_adapter(self, engine_id: str, id_: str, directory: Path) -> None:
        engine, digest = self._engines[engine_id].engine, model_hash(directory)
        self._adapters.add(engine_id, engine, id_, directory / paths.ADAPTER, digest)

    def _find_base_engine(self, digest: str, id_: str) -> str:
        """The id of the engine of the base with this hash, loaded if it is not."""
        with self._state_lock:
            loaded_bases = {k: self._engines[k] for k in self._bases if k in self._engines}
        for base_id, loaded_base in loaded_bases.items():
            if loaded_base.base_hash == digest:
                return base_id
        for base_id, base_uri in self._bases.items():
            with self._state_lock:
                loaded_engine = self._engines.get(base_id)
            if loaded_engine is None:
                base_folder = self._find_base_folder(base_uri, f"models.{base_id}")
                if not has_matching_hash(base_folder, digest):
                    continue
                loaded_bytes = estimate_loaded_bytes(base_folder, self._bytes_per_weight)
                self._add_engine(base_id, base_folder, loaded_bytes, base=True)
                return base_id
            if has_matching_hash(self._find_base_folder(base_uri, f"models.{base_id}"), digest):
                return base_id
        raise ConfigError(
            f"model {id_} adapts a base model that is not served here (hash {digest[:12]}); add it "
            "to `models`"
        )


def _read_base_hash(bundle: Path) -> str:
    """Of the model that a bundle's adapters are for; "" for what is a model itself."""
    base_and_hash = adapted_base(bundle)
    return base_and_hash[1] if base_and_hash else ""
