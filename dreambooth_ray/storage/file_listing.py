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
    path = f"{root}/{folder}" if folder else root

    def find_entries() -> dict[str, dict[str, Any]]:
        try:
            file_details: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return file_details

    entries = find_entries() if store.is_local else retry_while_away(find_entries, store.uri)
    return sorted(_iterate_files(entries, path), key=lambda file: file.name)


def _iterate_files(entries: dict[str, dict[str, Any]], path: str) -> Iterator[ListedFile]:
    for full_name, entry in entries.items():
        name = full_name.removeprefix(path).lstrip("/")
        if name and entry["type"] == "file":
            yield ListedFile(name, int(entry["size"] or 0), _read_time(entry))


def _read_time(entry: dict[str, Any]) -> float:
    time_value = next((entry[key] for key in _TIME_KEYS if entry.get(key)), 0.0)
    if isinstance(time_value, str):
        time_value = datetime.fromisoformat(time_value)
    return time_value.timestamp() if isinstance(time_value, datetime) else float(time_value)
