"""Folders on a host for large files on their way: removed after use, swept where a process died.

Each has a lock file beside it, which its owner holds: the kernel lets go of it when the owner ends,
however it ends, and tells containers that share the folder apart.
"""

import fcntl
import os
import shutil
import socket
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreambooth_ray.errors import ConfigError

PREFIX = "dreambooth-scratch-"
_LOCK_SUFFIX = ".lock"
# Younger ones may be without their lock yet.
MIN_AGE_S = 600.0


def scratch_base(configured: str | None) -> Path:
    """Where this host's scratch folders are: storage.scratch, or the system's temporary folder."""
    return Path(configured).expanduser() if configured else Path(tempfile.gettempdir())


_swept_bases = set[Path]()


class ScratchFolder:
    """A folder that this process owns; others of the host that know its name may write there."""

    def __init__(self, name: str, configured: str | None = None) -> None:
        """name: the same for all that share the folder; configured: storage.scratch

        raises: ConfigError if no folder can be made there
        """
        self.path = named_scratch_path(name, configured)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.parent not in _swept_bases:  # once a process: others wait for this folder
                _swept_bases.add(self.path.parent)
                sweep_scratch(self.path.parent)
            self._lock = os.open(_lock_path(self.path), os.O_RDWR | os.O_CREAT, 0o600)
            with suppress(OSError):  # a file system without locks: nobody sweeps there either
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            self.path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"storage.scratch: no folder can be made in {self.path.parent} on "
                f"{socket.gethostname()} ({error}); set it to one with room that every host has"
            ) from error
        # Also where nobody does so: when this object goes, and when the process ends.
        self._release = weakref.finalize(self, _remove_folder, self.path, self._lock)

    def remove(self) -> None:
        """Remove the folder with all in it; again is nothing."""
        self._release()


@contextmanager
def scratch_folder(purpose: str, configured: str | None = None) -> Iterator[Path]:
    """A folder of its own for the length of the block. purpose: part of its name"""
    folder = ScratchFolder(f"{purpose}-{uuid.uuid4().hex[:12]}", configured)
    try:
        yield folder.path
    finally:
        folder.remove()


def named_scratch_path(name: str, configured: str | None) -> Path:
    """Path of the folder that another process of this host owns by that name."""
    return scratch_base(configured) / f"{PREFIX}{name}"


def sweep_scratch(base: Path, min_age_s: float = MIN_AGE_S) -> list[Path]:
    """Remove the folders of processes that are no more; returns which."""
    stale_folders = find_stale_scratch(base, min_age_s)
    for folder in stale_folders:
        _remove_folder(folder)
    return stale_folders


def find_stale_scratch(base: Path, min_age_s: float = MIN_AGE_S) -> list[Path]:
    """This user's folders below `base` whose owner has ended; none younger than min_age_s."""
    stale_folders = []
    for path in sorted(base.glob(f"{PREFIX}*")):
        with suppress(OSError):  # it is gone, or not ours to look at
            file_status = path.stat(follow_symlinks=False)
            is_old = time.time() - file_status.st_mtime > min_age_s
            is_folder = path.is_dir() and file_status.st_uid == os.getuid()
            if is_folder and is_old and not _is_held(_lock_path(path)):
                stale_folders.append(path)
    return stale_folders


def _is_held(lock: Path) -> bool:
    try:
        lock_descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or no locks here: then nobody knows
        return True
    finally:
        os.close(lock_descriptor)
    return False


def _remove_folder(path: Path, lock: int | None = None) -> None:
    """lock: its owner's, which is let go of"""
    shutil.rmtree(path, ignore_errors=True)
    _lock_path(path).unlink(missing_ok=True)
    if lock is not None:
        os.close(lock)


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}{_LOCK_SUFFIX}")
