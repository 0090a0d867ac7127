"""A local file that is hashed as it is read: what is used is what was hashed, read once."""

import hashlib
from pathlib import Path

from dreambooth_ray.errors import CheckpointError

_BLOCK_BYTES = 2**22


class VerifiedFile:
    """Reads ranges of a file. In the file's order each byte is read once, and hashed then.

    What is skipped is read and hashed on the way; what lies before is read again.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        """sha256: that the file must have, in hexadecimal; raises CheckpointError if it is gone."""
        self._path, self._sha256 = path, sha256
        try:
            self._stream = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing") from error
        self._size_bytes = path.stat().st_size
        self._digest, self._hashed_bytes = hashlib.sha256(), 0

    def read(self, begin: int, end: int) -> bytearray:
        """Bytes from one offset up to another; raises CheckpointError if they are not there."""
        if not 0 <= begin <= end <= self._size_bytes:
            raise self._damage_error()
        self._hash_up_to(begin)
        range_bytes = self._read_local_range(begin, end)
        if end > self._hashed_bytes:
            self._digest.update(memoryview(range_bytes)[self._hashed_bytes - begin :])
            self._hashed_bytes = end
        return range_bytes

    def verify(self) -> None:
        """Read what has not been read; raises CheckpointError if the hash is another."""
        self._hash_up_to(self._size_bytes)
        if self._digest.hexdigest() != self._sha256:
            raise self._damage_error()

    def close(self) -> None:
        """Nothing can be read any more."""
        self._stream.close()

    def _hash_up_to(self, offset: int) -> None:
        while self._hashed_bytes < offset:
            chunk_end = min(offset, self._hashed_bytes + _BLOCK_BYTES)
            self._digest.update(self._read_local_range(self._hashed_bytes, chunk_end))
            self._hashed_bytes = chunk_end

    def _read_local_range(self, begin: int, end: int) -> bytearray:
        range_bytes = bytearray(end - begin)
        unfilled_view = memoryview(range_bytes)
        self._stream.seek(begin)
        while unfilled_view:
            num_read = self._stream.readinto(unfilled_view)
            if not num_read:
                raise self._damage_error()
            unfilled_view = unfilled_view[num_read:]
        return range_bytes

    def _damage_error(self) -> CheckpointError:
        return CheckpointError(f"{self._path} differs from its manifest: it is damaged")
