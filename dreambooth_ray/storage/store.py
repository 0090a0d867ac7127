"""Files under one URI. The only module that knows fsspec."""

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage import local_files, retry, s3_calls, transfer
from dreambooth_ray.storage.ordered_listing import list_files_after, list_names
from dreambooth_ray.storage.retry import PATIENCE_S, explain_local_error, retry_while_away

_PART_BYTES = 2**22
_CREATE_TRIES = 5
_Result = TypeVar("_Result")
_options: dict[str, Any] = {}


def use_storage_options(uri: str, options: Mapping[str, Any]) -> None:
    """Open every store of this URI's protocol with these fsspec options, here and in children.

    They may hold keys: they go through fsspec's defaults and the environment of processes
    started from here, and are never written to a file.
    """
    if not options:
        return
    protocol = fsspec.utils.get_protocol(uri)
    _options.update(options)
    fsspec.config.conf.setdefault(protocol, {}).update(options)
    os.environ[f"FSSPEC_{protocol.upper()}"] = json.dumps(fsspec.config.conf[protocol])


def get_storage_options() -> dict[str, Any]:
    """What `use_storage_options` got in this process, for a process on another machine."""
    return dict(_options)


class Store:
    """A folder, local or remote. Names are relative, with forward slashes.

    A write is seen whole or not at all: local files are written aside and renamed;
    object stores have that property by themselves.
    """

    def __init__(self, uri: str) -> None:
        """raises StorageError if the URI's protocol is unknown."""
        try:
            # No cache of listings: other processes write here too.
            fsspec_options = {"use_listings_cache": False} if "://" in uri else {}
            self._fs, root = fsspec.core.url_to_fs(uri, **fsspec_options)
        except (ValueError, ImportError) as error:
            raise StorageError(
                f"storage {uri!r} can't be opened: {error}; check storage.uri"
            ) from error
        self._root = str(root).rstrip("/")
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.is_s3_filesystem = s3_calls.is_s3_filesystem(self._fs)

    @property
    def uri(self) -> str:
        """Absolute; for a local folder a plain path."""
        return self._root if self.is_local else str(self._fs.unstrip_protocol(self._root))

    def local_path(self, name: str = "") -> Path:
        """Path of `name` in a local store."""
        if not self.is_local:
            raise StorageError(f"{self.uri} is not on this machine; a local path was asked for")
        return Path(self._full_path(name))

    def _full_path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def sub(self, name: str) -> "Store":
        """The store of a folder inside this one."""
        return Store(f"{self.uri}/{name}")

    @property
    def filesystem(self) -> tuple[Any, str]:
        """The fsspec filesystem, with its options, and the path in it."""
        return self._fs, self._root

    def _call_storage(self, work: Callable[[], _Result], patience_s: float = PATIENCE_S) -> _Result:
        """One call of the filesystem: waited for if it is remote, its errors in words."""
        if not self.is_local:
            return retry_while_away(work, self.uri, patience_s)
        try:
            return work()
        except OSError as error:
            if explanation := explain_local_error(error, self.uri):
                raise StorageError(explanation) from error
            raise

    def check_writable(self) -> None:
        """Write, read back and remove a small file; raises StorageError if that fails."""
        probe_name = f".probe-{uuid.uuid4().hex}"
        try:
            # Now, not once the network is back: a person is waiting for the first word.
            self._call_storage(lambda: self._write(probe_name, b"probe"), patience_s=0)
            if self.read(probe_name) != b"probe":
                raise StorageError(f"{self.uri} gives back other bytes than were written to it")
            self.remove_file(probe_name)
            if self.is_local and self.create(probe_name, b"probe"):
                self.remove_file(probe_name)
        except OSError as error:
            raise StorageError(
                f"storage {self.uri} is not writable ({error}); choose another storage.uri or "
                "mend its permissions"
            ) from error

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there. One request."""
        path = self._full_path(name)
        if self.is_s3_filesystem:
            return self._call_storage(lambda: s3_calls.has_file(self._fs, path))
        return bool(self._call_storage(lambda: self._fs.isfile(path)))

    def read(self, name: str, patience_s: float = PATIENCE_S) -> bytes:
        """Content of a file; raises FileNotFoundError. One request.

        patience_s: how long remote storage that is away is waited for
        """
        path = self._full_path(name)
        if self.is_s3_filesystem:
            return self._call_storage(lambda: s3_calls.read_file(self._fs, path), patience_s)
        return bytes(self._call_storage(lambda: self._fs.cat_file(path), patience_s))

    def read_from(self, name: str, start: int) -> bytes:
        """Content of a file from byte `start` on, b"" beyond its end; raises FileNotFoundError."""
        path = self._full_path(name)
        if self.is_s3_filesystem:
            return self._call_storage(lambda: s3_calls.read_file(self._fs, path, start))
        return bytes(self._call_storage(lambda: self._fs.cat_file(path, start=start)))

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """Bytes of a file from one offset up to another; raises FileNotFoundError."""
        path = self._full_path(name)
        return bytes(self._call_storage(lambda: self._fs.cat_file(path, start=begin, end=end)))

    def sha256(self, name: str) -> str:
        """SHA-256 of a file, in hexadecimal, read in parts; raises FileNotFoundError."""
        return self._call_storage(lambda: self._sha256(name))

    def _sha256(self, name: str) -> str:
        hasher = hashlib.sha256()
        with self._fs.open(self._full_path(name), "rb") as stream:
            while chunk := stream.read(_PART_BYTES):
                hasher.update(chunk)
        return hasher.hexdigest()

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file."""
        self._call_storage(lambda: self._write(name, data))

    def _write(self, name: str, data: bytes) -> None:
        if self.is_local:
            with local_files.replace_file(Path(self._full_path(name))) as partial_path:
                partial_path.write_bytes(data)
        else:
            self._fs.pipe_file(self._full_path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Create a file unless another is there; whether the stored content is now `data`.

        One of several callers wins, so callers that must tell themselves apart put a nonce into
        their data. A refusal alone says nothing: a layer below (retry_while_away, s3fs, botocore,
        an NFS client) may have tried again after the answer to a first try was lost on its way, and
        then the file that stands in the way is our own. What is stored says whose it is.

        raises: StorageError if storage stays away; then nobody knows whether the file was created
        """
        for _ in range(_CREATE_TRIES):
            if self._call_storage(lambda: self._create(name, data)):
                return True
            try:
                return self.read(name) == data
            except FileNotFoundError:
                continue  # it was removed between refusal and reading: the name is free again
        raise StorageError(
            f"{self.uri}/{name} is refused and then not there, {_CREATE_TRIES} times in a row; "
            "somebody else creates and removes it all the time: look for a second process"
        )

    def _create(self, name: str, data: bytes) -> bool:
        path = self._full_path(name)
        if self.is_local:
            return local_files.create_by_link(Path(path), data)
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if retry.is_name_taken(error):
                return False
            raise
        return True

    def upload(self, local: Path, name: str) -> transfer.UploadRecord:
        """Copy one local file here, read once; returns what was sent, and its checksum if the
        store computes one of the whole file.

        raises: StorageError if the store has other bytes than were sent
        """
        if self.is_s3_filesystem:
            return transfer.upload_to_s3(self._fs, self._full_path(name), local, self._call_storage)
        return self._call_storage(lambda: self._upload(local, name))

    def _upload(self, local: Path, name: str) -> transfer.UploadRecord:
        if self.is_local:
            with local_files.replace_file(Path(self._full_path(name))) as partial_path:
                return transfer.copy_local_file(local, partial_path)
        sent_file = transfer.upload_by_stream(self._fs, self._full_path(name), local)
        stored_size_bytes = int(self._fs.info(self._full_path(name))["size"])
        if stored_size_bytes != sent_file.size_bytes:
            raise StorageError(
                f"{self.uri}/{name} arrived with {stored_size_bytes} of {sent_file.size_bytes} "
                "bytes; check the network and the store"
            )
        return sent_file

    def describe(self, name: str) -> transfer.StoredFile:
        """What storage says of a file without reading it; raises FileNotFoundError."""
        path = self._full_path(name)
        if self.is_s3_filesystem:
            bucket, key, _ = self._fs.split_path(path)
            bucket_and_key = {"Bucket": bucket, "Key": key}
            return transfer.describe_in_s3(self._fs, bucket_and_key, self._call_storage)
        return transfer.StoredFile(int(self._call_storage(lambda: self._fs.info(path))["size"]))

    def download(self, name: str, local: Path, size_bytes: int | None = None) -> str:
        """Copy one file from here to a local path, made whole or not at all; returns its SHA-256.

        size_bytes: where it is known already
        raises: FileNotFoundError
        """
        local.parent.mkdir(parents=True, exist_ok=True)
        partial_path = local.with_name(f"{local.name}.{uuid.uuid4().hex}.partial")
        try:
            digest = self._download(name, partial_path, size_bytes)
            partial_path.replace(local)
        finally:
            partial_path.unlink(missing_ok=True)
        return digest

    def _download(self, name: str, partial: Path, size_bytes: int | None) -> str:
        path = self._full_path(name)
        if self.is_local:
            return self._call_storage(lambda: transfer.copy_local_file(Path(path), partial)).sha256
        if size_bytes is None:
            size_bytes = self.describe(name).size_bytes
        read_range = functools.partial(self.read_range, name)
        return transfer.download_parts(read_range, size_bytes, partial)

    def names(self, folder: str = "", after: str = "", limit: int | None = None) -> list[str]:
        """Names directly in a folder, sorted; empty if there is no such folder.

        after, limit: only names beyond this one, at most so many; others cost no request of S3
        """
        path = self._full_path(folder)
        names = self._call_storage(lambda: list_names(self._fs, path, after, limit))
        return [name for name in names if not name.endswith(".partial")]

    def remove_file(self, name: str) -> None:
        """Remove a file, if there. One request."""
        with suppress(FileNotFoundError, NotADirectoryError):
            self._call_storage(lambda: self._fs.rm_file(self._full_path(name)))

    def files_after(
        self, folder: str, after: str = "", limit: int = 1000, patience_s: float = PATIENCE_S
    ) -> list[str]:
        """Up to `limit` files at any depth below `folder` whose names come after `after`, in order.

        Names are relative to `folder` and ordered by their bytes. On S3 it is one request for each
        1,000, however many files there are; elsewhere one for each folder that the answer lies in.
        """
        fs, path = self._fs, self._full_path(folder)
        return self._call_storage(lambda: list_files_after(fs, path, after, limit), patience_s)

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if there."""
        self._call_storage(lambda: self._remove(name))

    def _remove(self, name: str) -> None:
        path = self._full_path(name)
        if self.is_s3_filesystem:
            s3_calls.remove_file(self._fs, path)
            s3_calls.remove_folder(self._fs, path)
            return
        try:
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)
        except FileNotFoundError:
            return  # somebody else was quicker
