"""Photographs by URI: a folder here, or a folder in storage that every host can read."""

import atexit
import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

from dreambooth_ray.data.caption_files import find_captions
from dreambooth_ray.data.masks import find_mask
from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.errors import CheckpointError, DataError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.artifact_uri import find_artifact
from dreambooth_ray.storage.file_listing import list_files
from dreambooth_ray.storage.store import Store


def is_remote_uri(photos: str) -> bool:
    """Whether a `subject.photos` is a URI rather than a folder of this machine."""
    return "://" in photos


def fetch_photographs_folder(photos: str) -> Path:
    """The local folder of a `subject.photos`; a remote one is downloaded once a process.

    raises: DataError where there is nothing, or where it differs from what was uploaded
    """
    return (
        _download_photographs(photos.rstrip("/"))
        if is_remote_uri(photos)
        else Path(photos).expanduser()
    )


def upload_photographs(folder: Path, storage: Store) -> str:
    """Commit a folder's photographs and captions under their hash; returns their URI.

    The same photographs are uploaded once, also by several runs.
    raises: DataError if the folder holds no photographs
    """
    files_to_upload: list[Path] = []
    photograph_paths = find_photographs(folder)
    captions_by_photograph = find_captions(photograph_paths)
    for photograph in photograph_paths:
        files_to_upload.append(photograph)
        if (mask_path := find_mask(photograph)) is not None:
            files_to_upload.append(mask_path)
        # A table of captions has those of several.
        if (
            photograph in captions_by_photograph
            and captions_by_photograph[photograph].path not in files_to_upload
        ):
            files_to_upload.append(captions_by_photograph[photograph].path)
    hasher = hashlib.sha256()
    for path in files_to_upload:
        hasher.update(f"{path.name}\0{manifest.file_hash(path)}\n".encode())
    photographs_key = paths.photographs(hasher.hexdigest()[:32])
    # Until a run names them, which may be an hour away, their age alone keeps them.
    if not _renew_photographs(storage, photographs_key):
        with tempfile.TemporaryDirectory(prefix="dreambooth-upload-") as staging_folder:
            for path in files_to_upload:
                shutil.copyfile(path, Path(staging_folder) / path.name)
            manifest.commit_artifact(
                storage, photographs_key, Path(staging_folder), {"kind": "photographs"}
            )
    return f"{storage.uri}/{photographs_key}"


def _renew_photographs(storage: Store, name: str) -> bool:
    """Make photographs that are there young again, for `gc`; whether they are there, whole."""
    try:
        storage.write(f"{name}.json", storage.read(f"{name}.json"))
    except FileNotFoundError:
        return False
    # Now: they may have been on their way out.
    return manifest.find_damage(storage, name) is None


@cache
def _download_photographs(uri: str) -> Path:
    local_folder = Path(tempfile.mkdtemp(prefix="dreambooth-photographs-"))
    atexit.register(shutil.rmtree, local_folder, ignore_errors=True)
    try:
        if (stored_artifact := find_artifact(uri)) is not None:
            manifest.download_artifact(*stored_artifact, local_folder)
            return local_folder
        remote_store = Store(uri)
        for remote_file in list_files(remote_store):
            if "/" not in remote_file.name:
                remote_store.download(
                    remote_file.name, local_folder / remote_file.name, remote_file.size_bytes
                )
    except (CheckpointError, OSError) as error:
        raise DataError(
            f"subject.photos={uri!r} can't be read: {error}; upload it again"
        ) from error
    if not any(local_folder.iterdir()):
        raise DataError(f"subject.photos={uri!r} has no files; upload the photographs there")
    return local_folder
