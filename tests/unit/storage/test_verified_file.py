import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import verified_file
from dreambooth_ray.storage.verified_file import VerifiedFile

DATA = bytes(range(200))


@pytest.fixture(params=[7, 2**22])
def open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[bytes], VerifiedFile]:
    """Opens a file of these bytes that should have DATA's hash."""
    monkeypatch.setattr(verified_file, "_BLOCK_BYTES", request.param)

    def write_and_open(data: bytes) -> VerifiedFile:
        (tmp_path / "file").write_bytes(data)
        return VerifiedFile(tmp_path / "file", hashlib.sha256(DATA).hexdigest())

    return write_and_open


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [(0, 200)],
        [(0, 0), (0, 50), (50, 200), (200, 200)],
        [(30, 40), (100, 120)],
        [(100, 120), (30, 40), (90, 130), (0, 200)],
    ],
)
def test_ranges_are_read_in_any_order_and_the_whole_is_hashed(
    open_file: Callable[[bytes], VerifiedFile], ranges: list[tuple[int, int]]
) -> None:
    whole, damaged = open_file(DATA), None
    for begin, end in ranges:
        assert whole.read(begin, end) == DATA[begin:end]
    whole.verify()
    whole.close()
    for changed in (0, 35, 110, 199):
        damaged = open_file(DATA[:changed] + b"\xff" + DATA[changed + 1 :])
        for begin, end in ranges:
            damaged.read(begin, end)
        with pytest.raises(CheckpointError, match="it is damaged"):
            damaged.verify()
        damaged.close()


def test_in_order_each_byte_is_read_once(
    open_file: Callable[[bytes], VerifiedFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sizes = open_file(DATA), []
    read_range = file._read_local_range

    def count(begin: int, end: int) -> bytearray:
        sizes.append(end - begin)
        return read_range(begin, end)

    monkeypatch.setattr(file, "_read_local_range", count)
    for begin in range(0, 160, 40):
        file.read(begin + 10, begin + 40)
    file.verify()
    file.close()
    assert sum(sizes) == len(DATA)


def test_what_is_beyond_the_end_or_gone_is_damage(
    open_file: Callable[[bytes], VerifiedFile], tmp_path: Path
) -> None:
    file = open_file(DATA[:-1])
    with pytest.raises(CheckpointError, match="it is damaged"):
        file.read(0, len(DATA))
    os.truncate(tmp_path / "file", 100)
    with pytest.raises(CheckpointError, match="it is damaged"):
        file.read(0, 150)
    file.close()
    (tmp_path / "file").unlink()
    with pytest.raises(CheckpointError, match="file is missing"):
        VerifiedFile(tmp_path / "file", "")
