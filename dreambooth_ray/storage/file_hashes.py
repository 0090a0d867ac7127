"""SHA-256 of large local files, each read once: what has been computed is kept for this user.

A hash is taken from the cache while path, size, inode and both times of the file are as they were.
The cache decides which model a bundle is said to be of, so it is read only where nobody else
could have written it, and a file that was changed a moment ago is not kept: another change
within the clock's resolution would go unseen.
"""

import json
import os
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path

from dreambooth_ray.storage.manifest import file_hash

_CACHE_FILE = "file-hashes.json"
_MAX_ENTRIES = 4096
_SETTLED_S = 3.0
# Small files are read faster than the cache is.
_MIN_BYTES = 2**20
# Of this process: quicker than the folder, and there where that can't be used.
_hashes: dict[str, list[object]] = {}


def dreambooth_cache_folder() -> Path:
    """What this user keeps between commands: DREAMBOOTH_CACHE, or below the user's cache folder."""
    if cache_dir := os.environ.get("DREAMBOOTH_CACHE"):
        return Path(cache_dir)
    user_cache_folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache_folder) / "dreambooth"


def cached_file_hash(path: Path) -> str:
    """SHA-256 of a local file, in hexadecimal; read only if it has changed since the last time."""
    real_path = path.resolve()
    initial_stat = real_path.stat()
    if initial_stat.st_size < _MIN_BYTES:
        return file_hash(real_path)
    path_key, file_state = str(real_path), _describe_file_state(initial_stat)
    if _hashes.get(path_key, [])[:-1] != file_state and (
        cached_hash_entry := _read_cache().get(path_key)
    ):
        _hashes[path_key] = cached_hash_entry
    if _hashes.get(path_key, [])[:-1] == file_state:
        return str(_hashes[path_key][-1])
    file_digest = file_hash(real_path)
    is_file_settled = time.time() - max(initial_stat.st_mtime, initial_stat.st_ctime) > _SETTLED_S
    if is_file_settled and _describe_file_state(real_path.stat()) == file_state:
        _hashes[path_key] = [*file_state, file_digest]
        _write_cache(path_key)
    return file_digest


def _describe_file_state(status: os.stat_result) -> list[object]:
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _read_cache() -> dict[str, list[object]]:
    """Empty unless file and folder are this user's own, and nobody else's to write."""
    try:
        cache_file = dreambooth_cache_folder() / _CACHE_FILE
        for checked_path in (cache_file.parent, cache_file):
            file_stat = checked_path.stat(follow_symlinks=False)
            if file_stat.st_uid != os.getuid() or file_stat.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return {}
        cache_content = json.loads(cache_file.read_text())
    except (OSError, ValueError, RuntimeError):  # a user without a home folder among them
        return {}
    if not isinstance(cache_content, dict):
        return {}
    return {
        path_key: hash_entry
        for path_key, hash_entry in cache_content.items()
        if isinstance(hash_entry, list) and len(hash_entry) == 5
    }


def _write_cache(key: str) -> None:
    """Add one of this process's hashes; without a folder to write, the process alone knows it."""
    hashes = {**_read_cache(), key: _hashes[key]}
    newest_hashes = dict(list(hashes.items())[-_MAX_ENTRIES:])
    with suppress(OSError, RuntimeError):
        cache_file = dreambooth_cache_folder() / _CACHE_FILE
        temporary_file = cache_file.with_name(f"{_CACHE_FILE}.{uuid.uuid4().hex}.partial")
        cache_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(
                os.open(temporary_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
            ) as f:
                json.dump(newest_hashes, f)
            temporary_file.replace(cache_file)
        finally:
            temporary_file.unlink(missing_ok=True)
