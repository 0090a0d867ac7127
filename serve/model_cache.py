"""The models a replica has loaded: engines by base or full model, adapters on their bases.

Bounded in bytes and in adapters; what was not drawn with for longest goes first, and never
what is being drawn with.
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
from dreambooth_ray.models.source import PARTS, base_directory, model_directory, model_hash
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.manifest import MANIFEST, fetch_folder
from dreambooth_ray.storage.store import Store
from serve.replica_messages import Artifact

_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1}


def loaded_bytes(directory: Path, bytes_per_weight: int) -> int:
    """Bytes that a model's weights take once loaded, by the headers of its safetensors files."""
    total = 0
    for path in (p for part in PARTS for p in (directory / part).glob("*.safetensors")):
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > path.stat().st_size:
                raise CheckpointError(f"{path.name} is no safetensors file; commit it anew")
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                total += (end - begin) // _DTYPE_BYTES[tensor["dtype"]] * bytes_per_weight
    return total


@dataclass
class Loaded:
    """An engine, and how many images are being drawn with it."""

    engine: Engine
    size_bytes: int
    base: str | None
    users: int = 0
    adapters: "OrderedDict[str, Adapter]" = field(default_factory=OrderedDict)


@dataclass
class Adapter:
    """An adapter on an engine. weights_sha256: of base and adapter together."""

    weights_sha256: str
    users: int = 0


@dataclass(frozen=True)
class ModelLease:
    """What an image is drawn with."""

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
    ) -> None:
        """bases: URI by id; cache: a folder of this replica's own; open_engine: starts one."""
        self._bases, self._storage_uri, self._cache = bases, storage_uri, cache
        self._open, self._bytes_per_weight = open_engine, bytes_per_weight
        self._memory_bytes, self._max_adapters = memory_bytes, max_adapters
        self._engines: OrderedDict[str, Loaded] = OrderedDict()
        # _guard protects the books; _loading lets one load run at a time.
        self._guard, self._loading = threading.RLock(), threading.Lock()

    @contextmanager
    def seat(self, artifact: Artifact) -> Iterator[ModelLease]:
        """What to draw an artifact with; it stays loaded for the length of the block.

        raises: CheckpointError if it is damaged, ConfigError, CapacityError
        """
        found = self._occupy(artifact)
        if found is None:
            with self._loading:
                found = self._occupy(artifact)
                if found is None:
                    self._load(artifact)
                    found = self._occupy(artifact)
        if found is None:
            raise CapacityError(f"model {artifact.id} was evicted while it was loaded; ask again")
        loaded, seat = found
        try:
            yield seat
        finally:
            with self._guard:
                loaded.users -= 1
                if seat.adapter is not None:
                    loaded.adapters[seat.adapter].users -= 1

    @property
    def loaded(self) -> tuple[str, ...]:
        """Ids of what is loaded, adapters included."""
        with self._guard:
            adapters = [name for e in self._engines.values() for name in e.adapters]
            return (*self._engines, *adapters)

    @property
    def size_bytes(self) -> int:
        """Weights of all loaded engines."""
        with self._guard:
            return sum(e.size_bytes for e in self._engines.values())

    @property
    def engines(self) -> list[Engine]:
        """All loaded engines."""
        with self._guard:
            return [e.engine for e in self._engines.values()]

    def close(self) -> None:
        """Stop all engines and remove the cache."""
        for engine in self.engines:
            engine.close()
        shutil.rmtree(self._cache, ignore_errors=True)

    def _occupy(self, artifact: Artifact) -> tuple[Loaded, ModelLease] | None:
        with self._guard:
            for id_, loaded in self._engines.items():
                if id_ == artifact.id:
                    seat = ModelLease(loaded.engine, None, loaded.engine.model_hash, None)
                elif artifact.id in loaded.adapters:
                    adapter = loaded.adapters[artifact.id]
                    adapter.users += 1
                    loaded.adapters.move_to_end(artifact.id)
                    base = loaded.engine.model_hash
                    seat = ModelLease(loaded.engine, artifact.id, adapter.weights_sha256, base)
                else:
                    continue
                loaded.users += 1
                self._engines.move_to_end(id_)
                return loaded, seat
        return None

    def _load(self, artifact: Artifact) -> None:
        if artifact.uri is not None:
            directory = model_directory(artifact.uri, "models")
            size = loaded_bytes(directory, self._bytes_per_weight)
            self._add_engine(artifact.id, directory, size, base=True)
            return
        directory = self._fetch(artifact)
        try:
            if (directory / paths.ADAPTER / tokens.FILE).is_file():
                # Learned words need a tokenizer, so an engine, of their own.
                size = loaded_bytes(base_directory(directory), self._bytes_per_weight)
                self._add_engine(artifact.id, directory, size, base=False)
            elif (directory / paths.ADAPTER).is_dir():
                self._add_adapter(artifact.id, directory)
            else:
                size = loaded_bytes(directory, self._bytes_per_weight)
                self._add_engine(artifact.id, directory, size, base=False)
        finally:
            # Everything is in memory now; the next load verifies the bytes anew.
            shutil.rmtree(directory, ignore_errors=True)

    def _fetch(self, artifact: Artifact) -> Path:
        """Download a bundle, every file against the manifest the gateway saw."""
        store = Store(self._storage_uri)
        name = f"{artifact.folder}/{MANIFEST}"
        try:
            manifest = store.read(name)
        except FileNotFoundError as error:
            raise CheckpointError(f"model {artifact.id} is no longer in storage") from error
        if hashlib.sha256(manifest).hexdigest() != artifact.manifest_sha256:
            raise CheckpointError(f"model {artifact.id} has changed in storage; ask again")
        local = self._cache / artifact.id
        shutil.rmtree(local, ignore_errors=True)
        try:
            fetch_folder(store, str(artifact.folder), local, manifest)
        except BaseException:
            shutil.rmtree(local, ignore_errors=True)
            raise
        (local / MANIFEST).write_bytes(manifest)
        return local

    def _add_engine(self, id_: str, directory: Path, size_bytes: int, *, base: bool) -> None:
        self._make_room(size_bytes, id_)
        engine = self._open(directory)
        digest = engine.model_hash
        with self._guard:
            self._engines[id_] = Loaded(engine, size_bytes, digest if base else None)

    def _make_room(self, size_bytes: int, id_: str) -> None:
        if size_bytes > self._memory_bytes:
            raise CapacityError(
                f"model {id_} takes {size_bytes} bytes and replicas.memory_bytes is "
                f"{self._memory_bytes}; raise it"
            )
        while True:
            with self._guard:
                if self.size_bytes + size_bytes <= self._memory_bytes:
                    return
                idle = [name for name, loaded in self._engines.items() if not loaded.users]
                if not idle:
                    raise CapacityError(f"model {id_} waits for memory that others draw with")
                evicted = self._engines.pop(idle[0])
            evicted.engine.close()

    def _add_adapter(self, id_: str, directory: Path) -> None:
        digest = str(json.loads((directory / MANIFEST).read_text())["about"]["base_hash"])
        loaded = self._base(digest, id_)
        with self._guard:
            idle = [name for name, adapter in loaded.adapters.items() if not adapter.users]
            full = len(loaded.adapters) >= self._max_adapters
            if full and not idle:
                raise CapacityError(f"model {id_} waits: {self._max_adapters} adapters are in use")
            if full:
                del loaded.adapters[idle[0]]
                loaded.engine.remove_adapter(idle[0])
        loaded.engine.add_adapter(id_, directory / paths.ADAPTER)
        with self._guard:
            loaded.adapters[id_] = Adapter(model_hash(directory))

    def _base(self, digest: str, id_: str) -> Loaded:
        """The engine of the base with this hash, loaded if it is not."""
        for base, uri in self._bases.items():
            with self._guard:
                loaded = self._engines.get(base)
            if loaded is None:
                directory = model_directory(uri, f"models.{base}")
                if model_hash(directory) != digest:
                    continue
                size = loaded_bytes(directory, self._bytes_per_weight)
                self._add_engine(base, directory, size, base=True)
                loaded = self._engines[base]
            if loaded.base == digest:
                return loaded
        raise ConfigError(
            f"model {id_} adapts a base model that is not served here (hash {digest[:12]}); add it "
            "to `models`"
        )
