"""Models in object storage, or anywhere fsspec reaches: a model directory, a run or a bundle.

Nothing heavy is imported.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.models.remote_model_files import INDEX, RemoteModelFiles
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.artifact_uri import find_artifact
from dreambooth_ray.storage.file_listing import list_files
from dreambooth_ray.storage.manifest import MANIFEST, bytes_hash, parse_manifest, read_entries
from dreambooth_ray.storage.store import Store


def is_url(uri: str) -> bool:
    """Whether a model's URI is a URL rather than a path."""
    return "://" in uri


def open_store_file(uri: str) -> "StoreFiles":
    """A single file at a URL; raises ConfigError where it is not there, StorageError."""
    folder, _, file_name = uri.rpartition("/")
    store = Store(folder)
    file_sizes_and_versions = {
        f.name: (f.size_bytes, f.modified_s) for f in list_files(store) if f.name == file_name
    }
    if not file_sizes_and_versions:
        raise ConfigError(f"{uri} is not there")
    return SingleStoreFile(store, file_sizes_and_versions)


def open_store_model(uri: str, part: str = "") -> "StoreFiles":
    """The files of a model, a run or a bundle at a URL, or of an artifact of a storage.

    part: it may be of such a part alone
    raises: ConfigError where there is none, CheckpointError, StorageError
    """
    store = _open_artifact(uri.rstrip("/")) or Store(uri.rstrip("/"))
    if store.exists(paths.CONFIG):
        store = store.sub(paths.BUNDLE)
    try:
        manifest = store.read(MANIFEST)
    except FileNotFoundError:
        manifest = None
    if manifest is not None:
        return BundleFiles(store, manifest)
    file_sizes_and_versions = {
        listed_file.name: (listed_file.size_bytes, listed_file.modified_s)
        for listed_file in list_files(store)
    }
    if not file_sizes_and_versions:
        raise ConfigError(f"{uri} has no files; give a model directory, or a run with its bundle")
    is_part_folder = bool(part) and "config.json" in file_sizes_and_versions
    is_model_folder = INDEX in file_sizes_and_versions or any(
        file_name.startswith("unet/") for file_name in file_sizes_and_versions
    )
    if not (is_part_folder or is_model_folder):
        raise ConfigError(
            f"{uri} is neither a model directory ({INDEX}) nor a run with a committed bundle; "
            "finish a run with `dreambooth resume`"
        )
    return StoreFiles(store, file_sizes_and_versions)


def _open_artifact(uri: str) -> Store | None:
    """The folder of a committed artifact, such as a model that `model_mirror` has put there."""
    if (artifact := find_artifact(uri)) is None:
        return None
    storage, artifact_name = artifact
    folder, _, _ = read_entries(storage, artifact_name)
    return storage.sub(folder)


class StoreFiles(RemoteModelFiles):
    """The files of a folder of storage, as they are listed now."""

    def __init__(self, store: Store, entries: Mapping[str, tuple[int, object]]) -> None:
        """entries: size of each file, and what tells this version of it from others"""
        file_sizes = {file_name: file_size for file_name, (file_size, _) in entries.items()}
        super().__init__(store.uri, file_sizes, json.dumps([store.uri, sorted(entries.items())]))
        self._store, self._entries = store, entries

    def fetch_range(self, name: str, begin: int, end: int) -> bytes:
        """See the base class."""
        return self._store.read_range(name, begin, end)

    def check_file_hash(self, name: str, path: Path, sha256: str) -> None:
        """See the base class. What storage does not tell a hash of is compared by size alone."""


class SingleStoreFile(StoreFiles):
    """One file of weights."""

    def select(self, part: str = "") -> tuple[list[str], list[str]]:
        """That one."""
        return [], list(self.sizes)


class BundleFiles(StoreFiles):
    """The files of a bundle, whose manifest says what each must be."""

    def __init__(self, store: Store, manifest: bytes) -> None:
        _, manifest_files = parse_manifest(manifest, f"{store.uri}/{MANIFEST}")
        file_sizes_and_versions = {
            manifest_file.name: (manifest_file.size_bytes, manifest_file.sha256)
            for manifest_file in manifest_files
        }
        super().__init__(
            store, file_sizes_and_versions | {MANIFEST: (len(manifest), bytes_hash(manifest))}
        )
        self._manifest, self.version = manifest, bytes_hash(manifest)

    def select(self, part: str = "") -> tuple[list[str], list[str]]:
        """All of them."""
        weight_files = [file_name for file_name in self.sizes if file_name.endswith(".safetensors")]
        return sorted(self.sizes.keys() - set(weight_files)), sorted(weight_files)

    def fetch_range(self, name: str, begin: int, end: int) -> bytes:
        """See the base class."""
        if name == MANIFEST:
            return self._manifest[begin:end]
        return super().fetch_range(name, begin, end)

    def check_file_hash(self, name: str, path: Path, sha256: str) -> None:
        """See the base class."""
        if self._entries[name][1] != sha256:
            raise CheckpointError(f"{self.uri}/{name} differs from its manifest: it is damaged")
