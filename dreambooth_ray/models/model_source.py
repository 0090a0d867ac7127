"""What `model.uri` may be, and where its files come to lie on this host.

A directory, a model of the Hugging Face Hub (OWNER/NAME or OWNER/NAME@REVISION), or a URL of a
directory, run or bundle. What lies elsewhere is fetched into this host's cache, once. Nothing
heavy is imported here.
"""

import hashlib
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.models import hub_files
from dreambooth_ray.models.hub_errors import HubModel, HubUnreachableError, NoSuchModelError
from dreambooth_ray.models.remote_files import (
    RemoteFiles,
    count_bytes,
    download_model,
    write_outline,
)
from dreambooth_ray.models.store_files import is_url, open_store_model
from dreambooth_ray.models.weight_cache import add_to_cache, find_cached
from dreambooth_ray.storage.file_hashes import cache_folder

_MAX_OUTLINE_AGE_S = 7 * 86_400.0
_WHAT = "give a directory in diffusers format, a run, a hub id such as owner/name, or a URL"


def is_elsewhere(uri: str) -> bool:
    """Whether a model's files have to be fetched before they can be read here."""
    return is_url(uri) or _find_hub_id(uri) is not None


def make_absolute(uri: str) -> str:
    """The same model, found from any working directory."""
    is_name = uri == "toyworld" or is_elsewhere(uri)
    return uri if is_name else str(Path(uri).expanduser().absolute())


def pin_source(uri: str, key: str) -> str:
    """The same model, at the commit that a hub id means now; others are as they are.

    raises: as `fetch_source`
    """
    hub_id = _find_hub_id(uri)
    if hub_id is None:
        return uri
    try:
        return str(hub_files.pin_model(hub_id))
    except DreamBoothError as error:
        raise _explain(uri, key, error) from error


def fetch_source(uri: str, key: str) -> Path:
    """Where a model's files lie on this host, fetched if they were not there.

    key: the setting to name in an error
    raises: ConfigError where it is no model or may not be read, CheckpointError, StorageError
    """
    return _locate(uri, key, whole=True)


def outline_source(uri: str, key: str) -> Path:
    """As `fetch_source`, to look at alone: of weights that are not here the headers alone are."""
    return _locate(uri, key, whole=False)


def _find_hub_id(uri: str) -> HubModel | None:
    """None for what is a path: a directory or file that is there goes before the hub."""
    return None if Path(uri).expanduser().exists() else hub_files.parse_hub_id(uri)


def _locate(uri: str, key: str, *, whole: bool) -> Path:
    hub_id = _find_hub_id(uri)
    try:
        if hub_id is not None:
            return _locate_on_hub(hub_id, whole)
        if is_url(uri):
            files = open_store_model(uri)
            return find_cached(files.cache_key) or _fetch(files, files.cache_key, whole)
    except DreamBoothError as error:
        raise _explain(uri, key, error) from error
    folder = Path(uri).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"{key}={uri!r} is neither 'toyworld' nor a directory; {_WHAT}")
    return folder


def _locate_on_hub(hub_id: HubModel, whole: bool) -> Path:
    model = hub_files.pin_model(hub_id)
    key = hashlib.sha256(f"hub {model}".encode()).hexdigest()[:32]
    if cached := find_cached(key):
        return cached
    try:
        files = hub_files.open_hub_model(model)
    except HubUnreachableError:
        if snapshot := hub_files.find_any_snapshot(model):
            return snapshot
        raise
    configs, weights = files.select()
    snapshot = hub_files.find_hub_snapshot(files, [*configs, *weights])
    return snapshot or _fetch(files, key, whole)


def _fetch(files: RemoteFiles, key: str, whole: bool) -> Path:
    if whole:
        return add_to_cache(key, count_bytes(files), lambda folder: download_model(files, folder))
    outline = cache_folder() / "outlines" / key
    if not outline.is_dir():
        _remove_old_outlines(outline.parent)
        partial = outline.with_name(f"{key}.{uuid.uuid4().hex}.partial")
        try:
            write_outline(files, partial)
            if not outline.is_dir():
                partial.rename(outline)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return outline


def _remove_old_outlines(folder: Path) -> None:
    """Those of models that were not looked at anew for long; somebody may be reading others."""
    for outline in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if time.time() - outline.stat().st_mtime > _MAX_OUTLINE_AGE_S:
                shutil.rmtree(outline)


def _explain(uri: str, key: str, error: DreamBoothError) -> DreamBoothError:
    """The same kind of error, with its key; of a hub id that might have been meant as a path."""
    is_unknown = isinstance(error, NoSuchModelError | HubUnreachableError)
    path = str(Path(uri).expanduser().absolute())
    other = f"; nor is there a directory {path}" if is_unknown and not is_url(uri) else ""
    return type(error)(f"{key}={uri!r}: {error}{other}")
