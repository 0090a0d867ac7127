"""Files under one URI. The only module that knows fsspec."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from dreambooth_ray.errors import StorageError

_PART_BYTES = 2**22


class Store:
    """A folder, local or remote. Names are relative, with forward slashes.

    A write is seen whole or not at all: local files are written aside and renamed;
    object stores have that property by themselves.
    """

    def __init__(self, uri: str) -> None:
        """raises StorageError if the URI's protocol is unknown."""
        try:
            self._fs, root = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise StorageError(
                f"storage {uri!r} can't be opened: {error}; check storage.uri"
            ) from error
        self._root = str(root).rstrip("/")
        self.is_local = isinstance(self._fs, LocalFileSystem)

    @property
    def uri(self) -> str:
        """Absolute; for a local folder a plain path."""
        return self._root if self.is_local else str(self._fs.unstrip_protocol(self._root))

    def local_path(self, name: str = "") -> Path:
        """Path of `name` in a local store."""
        if not self.is_local:
            raise StorageError(f"{self.uri} is not on this machine; a local path was asked for")
        return Path(self._at(name))

    def arrow(self) -> tuple[str, PyFileSystem | None]:
        """The same folder in pyarrow's terms: path and, unless local, filesystem."""
        if self.is_local:
            return self._root, None
        return self._root, PyFileSystem(FSSpecHandler(self._fs))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def sub(self, name: str) -> "Store":
        """The store of a folder inside this one."""
        return Store(f"{self.uri}/{name}")

    def check_writable(self) -> None:
        """Write, read back and remove a small file; raises StorageError if that fails."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"probe")
            if self.read(probe) != b"probe":
                raise StorageError(f"{self.uri} gives back other bytes than were written to it")
            self.remove(probe)
        except OSError as error:
            raise StorageError(
                f"storage {self.uri} is not writable ({error}); choose another storage.uri or "
                "mend its permissions"
            ) from error

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name is there."""
        return bool(self._fs.exists(self._at(name)))

    def read(self, name: str) -> bytes:
        """Content of a file; raises FileNotFoundError."""
        return bytes(self._fs.cat_file(self._at(name)))

    def sha256(self, name: str) -> str:
        """SHA-256 of a file, in hexadecimal, read in parts; raises FileNotFoundError."""
        digest = hashlib.sha256()
        with self._fs.open(self._at(name), "rb") as stream:
            while part := stream.read(_PART_BYTES):
                digest.update(part)
        return digest.hexdigest()

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file."""
        if self.is_local:
            with self._replacing(name) as partial:
                partial.write_bytes(data)
        else:
            self._fs.pipe_file(self._at(name), data)

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """A local file beside `name` that takes its place once it is whole and on disk."""
        path = Path(self._at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def create(self, name: str, data: bytes) -> bool:
        """Create a file unless it exists; False if it did. One of several callers wins."""
        path = self._at(name)
        if self.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            partial = Path(f"{path}.{uuid.uuid4().hex}.partial")
            partial.write_bytes(data)
            try:
                # A hard link appears whole, and fails where the name is taken.
                Path(path).hardlink_to(partial)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
            return True
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if "pre-condition" in str(error).lower():
                return False
            raise
        return True

    def upload(self, local: Path, name: str) -> None:
        """Copy one local file here."""
        if self.is_local:
            with self._replacing(name) as partial:
                shutil.copyfile(local, partial)
        else:
            self._fs.put_file(str(local), self._at(name))

    def download(self, name: str, local: Path) -> None:
        """Copy one file from here to a local path, made whole or not at all."""
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f"{local.name}.{uuid.uuid4().hex}.partial")
        try:
            self._fs.get_file(self._at(name), str(partial))
            partial.replace(local)
        finally:
            partial.unlink(missing_ok=True)

    def names(self, folder: str = "") -> list[str]:
        """Names directly in a folder, sorted; empty if there is no such folder."""
        path = self._at(folder)
        if not self._fs.exists(path):
            return []
        self._fs.invalidate_cache()
        found = [PurePosixPath(p).name for p in self._fs.ls(path, detail=False)]
        return sorted(n for n in found if not n.endswith(".partial"))

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if there."""
        if self.exists(name):
            self._fs.rm(self._at(name), recursive=True)
