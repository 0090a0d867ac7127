"""Files of this machine that are seen whole or not at all."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreambooth_ray.errors import StorageError

# As the file systems of memory cards, and some that show a bucket as a folder, say it.
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial_path
        with partial_path.open("rb") as stream:
            os.fsync(stream.fileno())
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def create_by_link(path: Path, data: bytes) -> bool:
    """Make a file unless one of that name is there; whether it was made."""
    try:
        return _link_new_file(path, data)
    except FileNotFoundError:  # its folder was removed while it was made
        return _link_new_file(path, data)


def _link_new_file(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = Path(f"{path}.{uuid.uuid4().hex}.partial")
    try:
        with partial_path.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # A hard link appears whole, and fails where the name is taken.
        path.hardlink_to(partial_path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            raise StorageError(
                f"storage {path.parent}: its file system has no hard links, by which one of two "
                "processes that write a name wins; choose another storage.uri, such as a folder of "
                "a local disk, NFS or an object store"
            ) from error
        raise
    finally:
        partial_path.unlink(missing_ok=True)
    return True


def remove_empty_folder_tree(path: Path) -> None:
    """Remove a folder and those below it that have no file, and no other process's new one."""
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
