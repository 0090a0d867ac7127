"""Models in object storage, or anywhere fsspec reaches: a model directory, a run or a bundle.

Nothing heavy is imported.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.models.remote_files import INDEX, RemoteFiles
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.file_listing import list_files
from dreambooth_ray.storage.manifest import MANIFEST, bytes_hash, parse_manifest
from dreambooth_ray.storage.store import Store

_HEX_DIGITS = 32


def is_url(uri: str) -> bool:
    """Whether a model's URI is a URL rather than a path."""
    return "://" in uri


def open_store_model(uri: str) -> "StoreFiles":
    """The files of a model, a run or a bundle at a URL.

    raises: ConfigError where there is none, CheckpointError, StorageError
    """
    store = Store(uri.rstrip("/"))
    if store.exists(paths.CONFIG):
        store = store.sub(paths.BUNDLE)
    try:
        manifest = store.read(MANIFEST)
    except FileNotFoundError:
        manifest = None
    if manifest is not None:
        return BundleFiles(store, manifest)
    entries = {file.name: (file.size_bytes, file.modified_s) for file in list_files(store)}
    if not entries:
        raise ConfigError(f"{uri} has no files; give a model directory, or a run with its bundle")
    if INDEX not in entries and not any(name.startswith("unet/") for name in entries):
        raise ConfigError(
            f"{uri} is neither a model directory ({INDEX}) nor a run with a committed bundle; "
            "finish a run with `dreambooth resume`"
        )
    return StoreFiles(store, entries)


class StoreFiles(RemoteFiles):
    """The files of a folder of storage, as they are listed now."""

    def __init__(self, store: Store, entries: Mapping[str, tuple[int, object]]) -> None:
        """entries: size of each file, and what tells this version of it from others"""
        super().__init__(store.uri, {name: size for name, (size, _) in entries.items()})
        self._store, self._entries = store, entries

    @cached_property
    def cache_key(self) -> str:
        """Of this version in the cache: another where a file has changed."""
        text = json.dumps([self.uri, sorted(self._entries.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:_HEX_DIGITS]

    def fetch_range(self, name: str, begin: int, end: int) -> bytes:
        """See the base class."""
        return self._store.read_range(name, begin, end)

    def check_file(self, name: str, path: Path, sha256: str) -> None:
        """See the base class. What storage does not tell a hash of is compared by size alone."""


class BundleFiles(StoreFiles):
    """The files of a bundle, whose manifest says what each must be."""

    def __init__(self, store: Store, manifest: bytes) -> None:
        _, files = parse_manifest(manifest, f"{store.uri}/{MANIFEST}")
        self._digest, self._manifest = bytes_hash(manifest), manifest
        entries = {file.name: (file.size_bytes, file.sha256) for file in files}
        super().__init__(store, entries | {MANIFEST: (len(manifest), self._digest)})

    @cached_property
    def cache_key(self) -> str:
        """See the base class."""
        return self._digest[:_HEX_DIGITS]

    def select(self) -> tuple[list[str], list[str]]:
        """All of them."""
        weights = [name for name in self.sizes if name.endswith(".safetensors")]
        return sorted(self.sizes.keys() - set(weights)), sorted(weights)

    def fetch_range(self, name: str, begin: int, end: int) -> bytes:
        """See the base class."""
        if name == MANIFEST:
            return self._manifest[begin:end]
        return super().fetch_range(name, begin, end)

    def check_file(self, name: str, path: Path, sha256: str) -> None:
        """See the base class."""
        if self._entries[name][1] != sha256:
            raise CheckpointError(f"{self.uri}/{name} differs from its manifest: it is damaged")
