"""Listing files in the order of their names, from a name on, however many there are.

An object store has that as one request (ListObjectsV2 with StartAfter). Elsewhere folders are read
one by one, only those that the answer lies in, and sorted as an object store would: by the bytes of
the whole name, in which a folder's name ends with a slash.
"""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from dreambooth_ray.storage import s3_calls
from dreambooth_ray.storage.retry import is_bucket_gone

# Of a folder: names directly in it, and whether each is a folder.
ListFolder = Callable[[str], list[tuple[str, bool]]]
_MOST_A_REQUEST = 1000


def list_files_after(filesystem: Any, folder: str, after: str, limit: int) -> list[str]:
    """Up to `limit` files at any depth below `folder`, in order, that come after `after`.

    filesystem: of fsspec; names are relative to `folder`
    """
    if s3_calls.is_s3_filesystem(filesystem):
        return _list_s3_after(filesystem, folder, after, limit)
    is_local = "file" in filesystem.protocol

    def list_folder(name: str) -> list[tuple[str, bool]]:
        path = f"{folder}/{name}"
        return _scan_local_folder(path) if is_local else _list_remote_folder(filesystem, path)

    return list(islice(_walk(list_folder, "", after), limit))


def list_names(filesystem: Any, folder: str, after: str, limit: int | None) -> list[str]:
    """Names directly in a folder that come after `after`, in order; none if there is no folder."""
    if s3_calls.is_s3_filesystem(filesystem):
        return s3_calls.list_names(filesystem, folder, after, limit)
    try:
        # A flat listing asks the store once, and fails if it can't answer.
        found_paths = filesystem.ls(folder, detail=False)
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_bucket_gone(error):
            raise
        return []
    names = sorted(PurePosixPath(found_path).name for found_path in found_paths)
    return [name for name in names if name > after][:limit]


def _walk(list_folder: ListFolder, folder: str, after: str) -> Iterator[str]:
    child_paths = [f"{folder}{name}/" if is_folder else f"{folder}{name}"
               for name, is_folder in list_folder(folder)]  # fmt: skip
    for child_path in sorted(child_paths):
        if not child_path.endswith("/"):
            if child_path > after:
                yield child_path
        elif child_path > after or after.startswith(child_path):
            yield from _walk(list_folder, child_path, after)


def _scan_local_folder(path: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(path) as directory_entries:
            names_and_kinds = [
                (directory_entry.name, directory_entry.is_dir())
                for directory_entry in directory_entries
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        (name, is_folder) for name, is_folder in names_and_kinds if not name.endswith(".partial")
    ]


def _list_remote_folder(filesystem: Any, path: str) -> list[tuple[str, bool]]:
    try:
        file_infos = filesystem.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_bucket_gone(error):
            raise
        return []
    return [
        (PurePosixPath(file_info["name"]).name, file_info["type"] == "directory")
        for file_info in file_infos
    ]


def _list_s3_after(filesystem: Any, folder: str, after: str, limit: int) -> list[str]:
    """One request for each 1,000 names."""
    bucket, key, _ = filesystem.split_path(folder)
    prefix = f"{key}/" if key else ""
    names: list[str] = []
    while len(names) < limit:
        response = filesystem.call_s3(
            "list_objects_v2",
            Bucket=bucket,
            Prefix=prefix,
            StartAfter=prefix + (names[-1] if names else after),
            MaxKeys=min(limit - len(names), _MOST_A_REQUEST),
        )
        page_names = [
            listed_object["Key"].removeprefix(prefix)
            for listed_object in response.get("Contents", [])
        ]
        names += page_names
        if not response.get("IsTruncated") or not page_names:
            break
    return names
