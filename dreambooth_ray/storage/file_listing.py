"""Every file of a folder in storage, with its size and age."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dreambooth_ray.storage.retry import retry_while_away
from dreambooth_ray.storage.store import Store

# What filesystems of fsspec call the time of the last change.
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class ListedFile:
    """name: relative to the folder; modified_s: Unix time by the clock of the store."""

    name: str
    size_bytes: int
    modified_s: float


def list_files(store: Store, folder: str = "") -> list[ListedFile]:
    """Files at any depth below a folder, sorted; empty if there is none. A request a thousand.

    raises: StorageError
    """
    filesystem, root = store.filesystem
    folder_path = f"{root}/{folder}" if folder else root

    def find_file_details() -> dict[str, dict[str, Any]]:
        try:
            file_details: dict[str, dict[str, Any]] = filesystem.find(folder_path, detail=True)
        except FileNotFoundError:
            return {}
        return file_details

    details_by_path = (
        find_file_details() if store.is_local else retry_while_away(find_file_details, store.uri)
    )
    return sorted(_iterate_files(details_by_path, folder_path), key=lambda file: file.name)


def find_modified_s(store: Store, name: str) -> float | None:
    """Unix time of a file's last change, by the clock of the store; None if there is none.

    raises: StorageError
    """
    filesystem, root = store.filesystem

    def find_file_details() -> dict[str, Any]:
        file_details: dict[str, Any] = filesystem.info(f"{root}/{name}")
        return file_details

    try:
        return _read_modified_time(
            find_file_details()
            if store.is_local
            else retry_while_away(find_file_details, store.uri)
        )
    except FileNotFoundError:
        return None


def _iterate_files(entries: dict[str, dict[str, Any]], path: str) -> Iterator[ListedFile]:
    for full_path, file_details in entries.items():
        relative_name = full_path.removeprefix(path).lstrip("/")
        if relative_name and file_details["type"] == "file":
            yield ListedFile(
                relative_name, int(file_details["size"] or 0), _read_modified_time(file_details)
            )


def _read_modified_time(entry: dict[str, Any]) -> float:
    modified_time = next((entry[key] for key in _TIME_KEYS if entry.get(key)), 0.0)
    if isinstance(modified_time, str):
        modified_time = datetime.fromisoformat(modified_time)
    return (
        modified_time.timestamp() if isinstance(modified_time, datetime) else float(modified_time)
    )
