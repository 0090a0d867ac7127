"""The files of an artifact on this machine, whole."""

import shutil
import uuid
from pathlib import Path

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.manifest import (
    MANIFEST,
    download_artifact,
    download_folder,
    find_damaged_file,
    read_entries,
)
from dreambooth_ray.storage.store import Store


def ensure_local_artifact(store: Store, name: str, local: Path) -> tuple[Path, dict[str, object]]:
    """The files of artifact `name` on this machine, verified, and its `about`; not to be changed.

    They are downloaded into `local`, unless the store is a folder of this machine: then they are
    where they lie.
    raises: CheckpointError naming the first file that is missing or differs
    """
    if not store.is_local:
        return local, download_artifact(store, name, local)
    folder, artifact_metadata, file_entries = read_entries(store, name)
    if damaged_file := find_damaged_file(store, folder, file_entries):
        raise CheckpointError(f"{store.uri}/{damaged_file}: the artifact is damaged")
    return store.local_path(folder), artifact_metadata


def download_whole_artifact(store: Store, folder: str, local: Path, manifest: bytes) -> None:
    """As `download_folder`, manifest included; `local` appears whole or not at all.

    Where several processes download the same, one of them makes `local`.
    """
    partial_folder = local.with_name(f"{local.name}.{uuid.uuid4().hex}.partial")
    try:
        download_folder(store, folder, partial_folder, manifest)
        (partial_folder / MANIFEST).write_bytes(manifest)
        if not local.is_dir():
            partial_folder.rename(local)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
