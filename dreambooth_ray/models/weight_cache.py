"""Models that were fetched, kept on this host: each once, bounded in bytes, whole or not there.

Below `dreambooth_cache_folder()/models` an entry KEY is a folder KEY/, and a record KEY.json of its
files' sizes and SHA-256. Whoever fills an entry holds the lock of KEY.lock alone, whoever uses it
shares that lock until the process ends: what is in use is never evicted. The kernel lets go of
locks with their process, however it ends. A fill that was cut off leaves KEY.partial/, where the
next one goes on.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreambooth_ray.config.machines import StorageConfig
from dreambooth_ray.errors import CapacityError, StorageError
from dreambooth_ray.storage.file_hashes import cached_file_hash, dreambooth_cache_folder
from dreambooth_ray.storage.local_files import replace_file
from dreambooth_ray.storage.manifest import local_entries

# What nobody has gone on with for so long was given up.
_ABANDONED_S = 86_400.0
_limit_bytes = int(StorageConfig().model_cache_gb * 1e9)
# Locks that this process shares for as long as it lives, by entry.
_held_locks: dict[Path, int] = {}


def set_model_cache_limit(limit_gb: float) -> None:
    """Bound the cache of this host for what this process adds from now on (1 GB = 1e9 bytes)."""
    global _limit_bytes  # noqa: PLW0603  of the process, as its cache folder is
    _limit_bytes = int(limit_gb * 1e9)


def fetched_models_folder() -> Path:
    """Where this host keeps the models that were fetched."""
    return dreambooth_cache_folder() / "models"


def find_cached_model(key: str) -> Path | None:
    """The entry of a key, whole, in use by this process from now on; None if it is not there."""
    folder = fetched_models_folder() / key
    if folder in _held_locks:
        return folder
    if not _record_path(folder).is_file():
        return None
    lock_fd = _open_lock(folder)
    _acquire_lock(lock_fd, fcntl.LOCK_SH)
    if not _is_model_whole(folder):
        os.close(lock_fd)
        return None
    return _keep_lock_until_exit(folder, lock_fd)


def add_model_to_cache(key: str, size_bytes: int, fill: Callable[[Path], None]) -> Path:
    """The entry of a key, made by `fill` if it is not there; in use by this process from now on.

    Of several processes one fills and the others wait. fill: writes into the folder that it gets,
    which may hold what an earlier try has left; size_bytes: that it is going to write
    raises: CapacityError where the disk has no room, StorageError where it can't be written
    """
    while (folder := find_cached_model(key)) is None:
        folder = fetched_models_folder() / key
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _exclusive_lock(folder):
                if not _is_model_whole(folder):
                    _fill_model_entry(folder, size_bytes, fill)
        except OSError as error:
            raise StorageError(
                f"{folder.parent} can't hold a model ({error}); set DREAMBOOTH_CACHE to a folder "
                "that can"
            ) from error
    return folder


def _fill_model_entry(folder: Path, size_bytes: int, fill: Callable[[Path], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # damaged, or without its record
    partial_folder = _partial_path(folder)
    partial_folder.mkdir(mode=0o700, exist_ok=True)
    _make_room(folder, size_bytes - _count_folder_bytes(partial_folder))
    fill(partial_folder)
    file_records = [
        [file_entry.name, file_entry.size_bytes, file_entry.sha256]
        for file_entry in local_entries(partial_folder)
    ]
    partial_folder.rename(folder)
    with replace_file(_record_path(folder)) as record_file:
        record_file.write_text(json.dumps({"files": file_records}))


def _is_model_whole(folder: Path) -> bool:
    """Whether all files are as they were written; each is read only if it has changed."""
    try:
        file_records = json.loads(_record_path(folder).read_text())["files"]
        return all(
            (folder / file_name).stat().st_size == size_bytes
            and cached_file_hash(folder / file_name) == sha256
            for file_name, size_bytes, sha256 in file_records
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _keep_lock_until_exit(folder: Path, lock: int) -> Path:
    _held_locks[folder] = lock
    with suppress(OSError):
        os.utime(_record_path(folder))  # when it was used last
    return folder


def _make_room(folder: Path, size_bytes: int) -> None:
    """Evict what was unused for longest until so many bytes more fit; raises CapacityError."""
    model_folders = [
        model_folder for model_folder in _list_model_folders() if model_folder != folder
    ]
    model_sizes = {
        model_folder: _count_folder_bytes(model_folder)
        + _count_folder_bytes(_partial_path(model_folder))
        for model_folder in model_folders
    }
    for model_folder in sorted(model_folders, key=_last_used_s):
        if sum(model_sizes.values()) + size_bytes <= _limit_bytes and _has_disk_space(
            folder, size_bytes
        ):
            return
        if _evict(model_folder):
            model_sizes.pop(model_folder)
    if not _has_disk_space(folder, size_bytes):
        free_gb = shutil.disk_usage(folder.parent).free / 1e9
        raise CapacityError(
            f"{folder.parent} has {free_gb:.1f} GB free and the model takes {size_bytes / 1e9:.1f} "
            "GB; make room, or set DREAMBOOTH_CACHE to a folder that has it"
        )


def _has_disk_space(folder: Path, size_bytes: int) -> bool:
    return shutil.disk_usage(folder.parent).free >= size_bytes


def _list_model_folders() -> list[Path]:
    folder_names = {path.name for path in fetched_models_folder().iterdir() if path.is_dir()}
    return [
        fetched_models_folder() / name
        for name in {n.removesuffix(".partial") for n in folder_names}
    ]


def _last_used_s(folder: Path) -> float:
    for path in (_record_path(folder), _partial_path(folder), folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _evict(folder: Path) -> bool:
    """Remove an entry that no process uses; whether it was removed."""
    is_partial = not _record_path(folder).is_file()
    if is_partial and time.time() - _last_used_s(folder) < _ABANDONED_S:
        return False
    lock_fd = _open_lock(folder)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        _record_path(folder).unlink(missing_ok=True)
        for path in (folder, _partial_path(folder)):
            shutil.rmtree(path, ignore_errors=True)
        return True
    finally:
        os.close(lock_fd)


def _count_folder_bytes(folder: Path) -> int:
    """Bytes on disk: files with holes count as what they hold."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    lock_fd = _open_lock(folder)
    try:
        _acquire_lock(lock_fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock_fd)


def _acquire_lock(lock: int, kind: int) -> None:
    with suppress(OSError):  # a file system without locks: nobody evicts there either
        fcntl.flock(lock, kind)


def _open_lock(folder: Path) -> int:
    return os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)


def _record_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _partial_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")
