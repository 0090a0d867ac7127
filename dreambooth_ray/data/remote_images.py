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


def is_remote(photos: str) -> bool:
    """Whether a `subject.photos` is a URI rather than a folder of this machine."""
    return "://" in photos


def photographs_folder(photos: str) -> Path:
    """The local folder of a `subject.photos`; a remote one is downloaded once a process.

    raises: DataError where there is nothing, or where it differs from what was uploaded
    """
    return _download_folder(photos.rstrip("/")) if is_remote(photos) else Path(photos).expanduser()


def upload_photographs(folder: Path, storage: Store) -> str:
    """Commit a folder's photographs and captions under their hash; returns their URI.

    The same photographs are uploaded once, also by several runs.
    raises: DataError if the folder holds no photographs
    """
    files: list[Path] = []
    photographs = find_photographs(folder)
    captions = find_captions(photographs)
    for photograph in photographs:
        files.append(photograph)
        if (mask := find_mask(photograph)) is not None:
            files.append(mask)
        # A table of captions has those of several.
        if photograph in captions and captions[photograph].path not in files:
            files.append(captions[photograph].path)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{manifest.file_hash(path)}\n".encode())
    artifact_name = paths.photographs(digest.hexdigest()[:32])
    if manifest.find_damage(storage, artifact_name) is not None:
        with tempfile.TemporaryDirectory(prefix="dreambooth-upload-") as staging_folder:
            for path in files:
                shutil.copyfile(path, Path(staging_folder) / path.name)
            manifest.commit_artifact(
                storage, artifact_name, Path(staging_folder), {"kind": "photographs"}
            )
    return f"{storage.uri}/{artifact_name}"


@cache
def _download_folder(uri: str) -> Path:
    local_folder = Path(tempfile.mkdtemp(prefix="dreambooth-photographs-"))
    atexit.register(shutil.rmtree, local_folder, ignore_errors=True)
    try:
        if (artifact := find_artifact(uri)) is not None:
            manifest.download_artifact(*artifact, local_folder)
            return local_folder
        folder = Store(uri)
        for file in list_files(folder):
            if "/" not in file.name:
                folder.download(file.name, local_folder / file.name, file.size_bytes)
    except (CheckpointError, OSError) as error:
        raise DataError(
            f"subject.photos={uri!r} can't be read: {error}; upload it again"
        ) from error
    if not any(local_folder.iterdir()):
        raise DataError(f"subject.photos={uri!r} has no files; upload the photographs there")
    return local_folder
