"""Bundles in object storage, downloaded once and verified."""

import os
from pathlib import Path

from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store


def cache_folder() -> Path:
    """Where downloaded bundles are cached: DREAMBOOTH_CACHE, or below the user's cache folder."""
    if cache_dir := os.environ.get("DREAMBOOTH_CACHE"):
        return Path(cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dreambooth"


def resolve_model(uri: str) -> str:
    """A path for a model's URI: itself if it is local, else a verified copy of the bundle.

    uri: a run or a bundle; copies are cached by the hash of their manifest
    raises: ConfigError if there is no bundle, CheckpointError if a file of it is damaged
    """
    if "://" not in uri:
        return uri
    store = Store(uri)
    if store.exists(paths.CONFIG):
        store = store.sub(paths.BUNDLE)
    try:
        manifest_bytes = store.read(manifest.MANIFEST)
    except FileNotFoundError as error:
        raise ConfigError(
            f"MODEL={uri!r} has no committed bundle; give a finished run, or finish it with "
            "`dreambooth resume`"
        ) from error
    folder = cache_folder() / manifest.bytes_hash(manifest_bytes)[:32]
    if not folder.is_dir():
        try:
            manifest.download_whole(store, "", folder, manifest_bytes)
        except OSError as error:
            raise CheckpointError(f"{store.uri} can't be copied to {folder}: {error}") from error
    return str(folder)
