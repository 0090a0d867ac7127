"""Models for the hosts of a cluster, which share a storage and no path: each fetches a model once.

`models/HASH` in the storage is the model with that `model_hash`, committed as all artifacts are.
Who starts work on a cluster, or sends it there, puts its model there; a host that lacks it takes it
from there into its own cache. A model of the hub is fetched from the hub by one host: it holds a
lease meanwhile, and then writes down in `models/sources` which hash the commit has. Nothing heavy
is imported.
"""

import hashlib
import json
import math
import socket
from pathlib import Path

from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.models.model_directory import (
    adapted_base,
    list_loaded_files,
    model_directory,
    model_hash,
)
from dreambooth_ray.models.model_source import (
    find_hub_id,
    find_packaged_model,
    parse_source,
    pin_source,
)
from dreambooth_ray.models.store_files import is_url
from dreambooth_ray.models.weight_cache import (
    add_model_to_cache,
    fetched_models_folder,
    find_cached_model,
)
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.lease import LeaseFiles
from dreambooth_ray.storage.lease_keeper import LeaseKeeper, LeaseWaiter
from dreambooth_ray.storage.scratch import scratch_folder
from dreambooth_ray.storage.store import Store

_LEASE_S = 30.0
_KEY_DIGITS = 32


def share_model(uri: str, key: str, storage: Store) -> Path:
    """As `model_directory`, for all hosts that share a storage.

    raises: as `model_directory`
    """
    pinned_source = pin_source(uri, key)
    if not _is_pinned_on_hub(pinned_source):
        folder = model_directory(pinned_source, key)
        publish_model(folder, model_hash(folder), storage)
        return folder
    source_hash = hashlib.sha256(pinned_source.encode()).hexdigest()[:_KEY_DIGITS]
    source_record_name = f"{paths.MODEL_SOURCES}/{source_hash}.json"
    if shared_folder := _fetch_shared_model(storage, source_record_name):
        return shared_folder
    leases = LeaseFiles(storage, f"{paths.MODEL_SOURCES}/{source_hash}-lease-")
    with LeaseKeeper(LeaseWaiter(leases, _LEASE_S, math.inf, _ignore_message), _ignore_message):
        if shared_folder := _fetch_shared_model(storage, source_record_name):
            return shared_folder
        folder = model_directory(pinned_source, key)
        weights_hash = model_hash(folder)
        publish_model(folder, weights_hash, storage)
        storage.write(
            source_record_name,
            json.dumps({"source": pinned_source, "model_hash": weights_hash}).encode(),
        )
    return folder


def upload_local_model(text: str, key: str, storage: Store) -> str:
    """Where other hosts find a model: one of this host is put into the storage that they read.

    key: the setting to name in an error
    returns: the text as it is, of what ships, of models of the hub and of URLs
    raises: as `model_directory`, and ConfigError for adapters whose base model lies on this host
    """
    if not _is_on_this_host(text):
        return text
    folder = model_directory(text, key)
    base_model = adapted_base(folder)
    if base_model and _is_on_this_host(base_model[0]):
        raise ConfigError(
            f"{key}={text!r} adapts {base_model[0]!r}, which lies on this machine, where the hosts "
            "of a cluster do not see it; `dreambooth export --format diffusers` makes one model of "
            "both: give that"
        )
    model_digest = model_hash(folder)
    publish_model(folder, model_digest, storage)
    return f"{storage.uri}/{paths.model(model_digest)}"


def _is_on_this_host(text: str) -> bool:
    """Whether anything that a source names is a folder or a file of this host."""
    return any(
        not (find_packaged_model(uri) or is_url(uri) or find_hub_id(uri))
        for uri in _list_source_uris(text)
    )


def _list_source_uris(text: str) -> list[str]:
    source = parse_source(text)
    return [uri for uri in (source.uri, source.vae, source.text_encoder) if uri]


def publish_model(folder: Path, digest: str, storage: Store) -> None:
    """Put a model into a storage, unless it is there. digest: its `model_hash`"""
    artifact_name = paths.model(digest)
    if manifest.find_size_or_checksum_mismatch(storage, artifact_name) is None:
        return
    with scratch_folder("model") as staging_folder:
        for file_name in list_loaded_files(folder):
            (staging_folder / file_name).parent.mkdir(parents=True, exist_ok=True)
            (staging_folder / file_name).symlink_to((folder / file_name).resolve())
        manifest.commit_artifact(
            storage, artifact_name, staging_folder, _make_manifest_about(folder)
        )


def _make_manifest_about(folder: Path) -> dict[str, object]:
    """What a model's manifest says of it: of adapters, their base model."""
    if adapted_base(folder) is None:
        return {"kind": "model"}
    model_manifest = json.loads((folder / manifest.MANIFEST).read_text())
    manifest_about: dict[str, object] = model_manifest["about"]
    return manifest_about


def locate_model(directory: str, digest: str, uri: str) -> Path:
    """A model's folder on this host, by where it lay on the host that started the work.

    digest: its `model_hash`; uri: of a run or a set of class images in the storage that hosts share
    raises: CheckpointError where this host has no such folder and the storage no such model
    """
    path = Path(directory)
    if path.is_dir():
        # In use by this process from now on, where it is of the cache.
        cached_folder = (
            find_cached_model(path.name) if path.parent == fetched_models_folder() else None
        )
        return cached_folder or path
    try:
        return _fetch_model_by_hash(digest, Store(_parse_storage_uri(uri)))
    except CheckpointError as error:
        raise CheckpointError(
            f"model.uri: {directory} is not on {socket.gethostname()}, and the storage that hosts "
            f"share has no copy of it ({error}); put it there on every host, or start the work "
            "anew with cluster.address set"
        ) from error


def _fetch_shared_model(storage: Store, mark: str) -> Path | None:
    try:
        return _fetch_model_by_hash(str(json.loads(storage.read(mark))["model_hash"]), storage)
    except (FileNotFoundError, CheckpointError):
        return None  # nobody has put it there yet, or it was removed since


def _fetch_model_by_hash(digest: str, storage: Store) -> Path:
    cache_key, artifact_name = digest[:_KEY_DIGITS], paths.model(digest)
    if cached_folder := find_cached_model(cache_key):
        return cached_folder
    stored_folder, manifest_about, files = manifest.read_entries(storage, artifact_name)

    def download_copy(local: Path) -> None:
        manifest.download_files(storage, stored_folder, files, local)
        if "base_model" in manifest_about:  # adapters say by their manifest what they adapt
            manifest.write_local_manifest(local, manifest_about)

    return add_model_to_cache(cache_key, sum(file.size_bytes for file in files), download_copy)


def _parse_storage_uri(uri: str) -> str:
    """The storage that a run or a set of class images lies in."""
    for parent_name in ("runs", paths.PRIORS):
        storage_uri, _, artifact_name = uri.rpartition(f"/{parent_name}/")
        if storage_uri and "/" not in artifact_name:
            return storage_uri
    return uri


def _is_pinned_on_hub(text: str) -> bool:
    """Whether all that a source names is of the hub, at commits, or ships."""
    source_hub_ids = [
        find_hub_id(uri) for uri in _list_source_uris(text) if not find_packaged_model(uri)
    ]
    return bool(source_hub_ids) and all(
        model is not None and model.is_pinned for model in source_hub_ids
    )


def _ignore_message(_: str) -> None:
    """Who waits for a model hears of it from the download itself."""
