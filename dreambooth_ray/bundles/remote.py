"""Bundles in object storage, downloaded once and verified."""

from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.storage import artifact_files, manifest, paths
from dreambooth_ray.storage.file_hashes import cache_folder
from dreambooth_ray.storage.store import Store


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
            artifact_files.download_whole(store, "", folder, manifest_bytes)
        except OSError as error:
            raise CheckpointError(f"{store.uri} can't be copied to {folder}: {error}") from error
    return str(folder)
