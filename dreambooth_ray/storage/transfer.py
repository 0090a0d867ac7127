"""Files on their way to storage and back: hashed as they pass, so that nothing is read twice.

S3 computes CRC32 over whole objects, also over those that arrive in parts, and compares it with
ours; SHA-256 over parts it gives back as a composite, which is nobody's hash of the file, and
CRC32C and CRC64NVME need a package more here (awscrt).
"""

import base64
import errno
import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dreambooth_ray.errors import StorageError

_BLOCK_BYTES = 2**22
_PART_BYTES, _MAX_PARTS = 2**25, 9_000
# Parts on their way at a time: together they fill a fast network and take 128 MiB.
_CONCURRENCY = 4
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
CallStorage = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class StoredFile:
    """What is known of a file in storage.

    checksum: as the store itself computes it over the whole file, "CRC32:<base64>", where it does
    """

    size_bytes: int
    checksum: str | None = None


@dataclass(frozen=True)
class UploadRecord(StoredFile):
    """A file that has been sent. sha256: of the bytes that were, in hexadecimal."""

    sha256: str = ""


class _RunningHash:
    def __init__(self) -> None:
        self._sha256, self._crc32, self._size_bytes = hashlib.sha256(), 0, 0

    def hash_chunk(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._crc32 = zlib.crc32(chunk, self._crc32)
        self._size_bytes += len(chunk)

    @property
    def crc32(self) -> str:
        return _encode_crc32(self._crc32)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def make_upload_record(self, checksum: str | None) -> UploadRecord:
        return UploadRecord(self._size_bytes, checksum, self.sha256)


def _encode_crc32(value: int) -> str:
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def copy_local_file(source: Path, target: Path) -> UploadRecord:
    """Copy a local file, hashing what is written."""
    hasher = hashlib.sha256()
    size_bytes = 0
    with source.open("rb") as stream, target.open("wb") as target_stream:
        while chunk := stream.read(_BLOCK_BYTES):
            hasher.update(chunk)
            target_stream.write(chunk)
            size_bytes += len(chunk)
    return UploadRecord(size_bytes, None, hasher.hexdigest())


def upload_by_stream(filesystem: Any, path: str, local: Path) -> UploadRecord:
    """Send a local file through any fsspec filesystem's own writer."""
    running_hash = _RunningHash()
    with local.open("rb") as stream, filesystem.open(path, "wb") as target_stream:
        while chunk := stream.read(_BLOCK_BYTES):
            running_hash.hash_chunk(chunk)
            target_stream.write(chunk)
    return running_hash.make_upload_record(None)


def upload_to_s3(
    filesystem: Any, path: str, local: Path, call_storage: CallStorage
) -> UploadRecord:
    """Send a local file to S3, in parts where it is large, with a CRC32 that the store checks.

    A store that knows no such checksums gets the file without.

    filesystem: s3fs's; call_storage: does one request, patiently
    raises: StorageError if what the store received has another checksum
    """
    bucket, key, _ = filesystem.split_path(path)
    s3_upload = _S3Upload(filesystem, {"Bucket": bucket, "Key": key}, local, call_storage)
    try:
        sent_file = s3_upload.send(with_checksum=True)
    except StorageError as error:
        if not _is_checksum_refused(error):
            raise
        sent_file = s3_upload.send(with_checksum=False)
    filesystem.invalidate_cache(path)
    return sent_file


def _is_checksum_refused(error: StorageError) -> bool:
    """Whether a store said that it knows no such header, not that the checksum differs."""
    cause = error.__cause__
    response = getattr(cause.__cause__, "response", {}) if cause else {}
    error_code = response.get("Error", {}).get("Code", "")
    is_refused = isinstance(cause, OSError) and cause.errno in (errno.EINVAL, errno.ENOSYS)
    return is_refused and "Digest" not in error_code and "Mismatch" not in error_code


class _S3Upload:
    """One file's way to S3. `target`: bucket and key, as every request has them."""

    def __init__(
        self, filesystem: Any, target: dict[str, str], local: Path, call_storage: CallStorage
    ) -> None:
        self._filesystem, self._target, self._local = filesystem, target, local
        self._call_storage = call_storage

    def _request(self, method: str, **arguments: Any) -> dict[str, Any]:
        def send_request() -> Any:
            return self._filesystem.call_s3(method, **self._target, **arguments)

        response: dict[str, Any] = self._call_storage(send_request)
        return response

    def send(self, with_checksum: bool) -> UploadRecord:
        size_bytes = self._local.stat().st_size
        with self._local.open("rb") as stream:
            if size_bytes <= _PART_BYTES:
                return self._send_whole(stream.read(), with_checksum)
            return self._send_parts(stream, size_bytes, with_checksum)

    def _send_whole(self, data: bytes, with_checksum: bool) -> UploadRecord:
        running_hash = _RunningHash()
        running_hash.hash_chunk(data)
        checksum_argument = {"ChecksumCRC32": running_hash.crc32} if with_checksum else {}
        response = self._request("put_object", Body=data, **checksum_argument)
        return self._check_sent_checksum(response, running_hash)

    def _send_parts(self, stream: BinaryIO, size_bytes: int, with_checksum: bool) -> UploadRecord:
        running_hash = _RunningHash()
        part_size_bytes = max(_PART_BYTES, -(-size_bytes // _MAX_PARTS))
        checksum_type_argument = {"ChecksumType": "FULL_OBJECT"} if with_checksum else {}
        checksum_algorithm_argument = {"ChecksumAlgorithm": "CRC32"} if with_checksum else {}
        upload_id_argument = {"UploadId": self._request(
            "create_multipart_upload", **checksum_algorithm_argument, **checksum_type_argument
        )["UploadId"]}  # fmt: skip

        def send_part(number_and_data: tuple[int, bytes]) -> dict[str, Any]:
            part_number, part_data = number_and_data
            checksum_argument = (
                {"ChecksumCRC32": _encode_crc32(zlib.crc32(part_data))} if with_checksum else {}
            )
            response = self._request(
                "upload_part",
                **upload_id_argument,
                PartNumber=part_number,
                Body=part_data,
                **checksum_argument,
            )
            return {"PartNumber": part_number, "ETag": response["ETag"], **checksum_argument}

        def read_parts() -> Iterator[tuple[int, bytes]]:
            part_number = 0
            while part_data := stream.read(part_size_bytes):
                running_hash.hash_chunk(part_data)
                part_number += 1
                yield part_number, part_data

        try:
            uploaded_parts = list(_map_few(send_part, read_parts()))
            checksum_argument = {"ChecksumCRC32": running_hash.crc32} if with_checksum else {}
            return self._complete(
                upload_id_argument,
                uploaded_parts,
                checksum_argument | checksum_type_argument,
                running_hash,
            )
        except BaseException:
            with suppress(Exception):
                self._filesystem.call_s3(
                    "abort_multipart_upload", **self._target, **upload_id_argument
                )
            raise

    def _complete(
        self,
        upload_id: dict[str, Any],
        uploaded_parts: list[dict[str, Any]],
        checksum: dict[str, str],
        running_hash: _RunningHash,
    ) -> UploadRecord:
        try:
            response = self._request(
                "complete_multipart_upload", **upload_id, MultipartUpload={"Parts": uploaded_parts},
                **checksum,
            )  # fmt: skip
        except FileNotFoundError:
            # A first try may have completed it and its answer been lost: then the object is there.
            response = {}
        return self._check_sent_checksum(response, running_hash)

    def _check_sent_checksum(
        self, response: dict[str, Any], running_hash: _RunningHash
    ) -> UploadRecord:
        sent_file = running_hash.make_upload_record(f"CRC32:{running_hash.crc32}")
        if response.get("ChecksumCRC32") == running_hash.crc32:
            return sent_file
        stored_file = describe_in_s3(self._filesystem, self._target, self._call_storage)
        is_same_checksum = stored_file.checksum in (None, sent_file.checksum)
        if stored_file.size_bytes != sent_file.size_bytes or not is_same_checksum:
            raise StorageError(
                f"storage: {self._target['Bucket']}/{self._target['Key']} arrived with "
                f"{stored_file.size_bytes} bytes and checksum {stored_file.checksum}, and "
                f"{sent_file.size_bytes} with {sent_file.checksum} were sent; check the network "
                "and the store"
            )
        return sent_file if stored_file.checksum else running_hash.make_upload_record(None)


def describe_in_s3(
    filesystem: Any, target: dict[str, str], call_storage: CallStorage
) -> StoredFile:
    """Size and whole-object checksum of an object, one request; raises FileNotFoundError."""

    def send_request() -> Any:
        return filesystem.call_s3("head_object", **target, ChecksumMode="ENABLED")

    response: dict[str, Any] = call_storage(send_request)
    crc32 = response.get("ChecksumCRC32")
    is_whole_object_checksum = response.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    # A composite one is told by the number of parts at its end.
    if not crc32 or not is_whole_object_checksum or "-" in crc32:
        return StoredFile(int(response["ContentLength"]))
    return StoredFile(int(response["ContentLength"]), f"CRC32:{crc32}")


def download_parts(
    read_range: Callable[[int, int], bytes], size_bytes: int, local: Path, goes_on: bool = False
) -> str:
    """Write a file of storage to a local path, some parts at a time; returns its SHA-256.

    read_range: gives bytes from one offset up to another
    goes_on: from what `local` holds of it already
    """
    hasher, start_byte = hashlib.sha256(), 0
    if goes_on and local.is_file() and local.stat().st_size <= size_bytes:
        start_byte = local.stat().st_size
        with local.open("rb") as stream:
            while chunk := stream.read(_BLOCK_BYTES):
                hasher.update(chunk)
    byte_ranges = (
        (begin, min(begin + _PART_BYTES, size_bytes))
        for begin in range(start_byte, size_bytes, _PART_BYTES)
    )
    with local.open("ab" if start_byte else "wb") as local_stream:
        for part_data in _map_few(lambda bounds: read_range(*bounds), byte_ranges):
            hasher.update(part_data)
            local_stream.write(part_data)
    return hasher.hexdigest()


def _map_few(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in order, of a few items at a time: no more of them are in memory."""
    pending_futures: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="transfer") as thread_pool:
        for item in items:
            pending_futures.append(thread_pool.submit(work, item))
            if len(pending_futures) >= _CONCURRENCY:
                yield pending_futures.popleft().result()
        while pending_futures:
            yield pending_futures.popleft().result()
