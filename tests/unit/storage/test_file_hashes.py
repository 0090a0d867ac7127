import json
import os
from pathlib import Path

import pytest

from dreambooth_ray.storage import file_hashes, manifest

SIZE = 2**20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of one's own; nothing is known in this process."""
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "_hashes", {})
    monkeypatch.setattr(file_hashes, "_SETTLED_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read for their hash."""
    read_paths: list[Path] = []

    def note(path: Path) -> str:
        read_paths.append(path)
        return manifest.file_hash(path)

    monkeypatch.setattr(file_hashes, "file_hash", note)
    return read_paths


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process: only what is on disk is known."""
    monkeypatch.setattr(file_hashes, "_hashes", {})


def write(path: Path, byte: bytes) -> Path:
    path.write_bytes(byte * SIZE)
    return path


def test_a_file_is_read_once(
    cache: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "weights", b"a")
    digests = {file_hashes.cached_file_hash(path)}
    digests.add(file_hashes.cached_file_hash(path))
    forget(monkeypatch)
    digests.add(file_hashes.cached_file_hash(path))
    assert digests == {manifest.file_hash(path)}
    assert reads == [path]


def test_other_bytes_of_the_same_size_and_time_are_seen(
    cache: Path, reads: list[Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "weights", b"a")
    before, status = file_hashes.cached_file_hash(path), path.stat()
    write(path, b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_hashes.cached_file_hash(path) != before


def test_a_file_changed_a_moment_ago_is_not_kept(
    cache: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "_SETTLED_S", 3600.0)
    path = write(tmp_path / "weights", b"a")
    file_hashes.cached_file_hash(path)
    file_hashes.cached_file_hash(path)
    assert reads == [path, path]
    assert not cache.exists()


@pytest.mark.parametrize("place", ["", "file-hashes.json"])
def test_a_cache_that_others_may_write_is_not_believed(
    cache: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = write(tmp_path / "weights", b"a")
    file_hashes.cached_file_hash(path)
    assert (cache / "file-hashes.json").stat().st_mode & 0o777 == 0o600
    forget(monkeypatch)
    (cache / place).chmod(0o777)
    file_hashes.cached_file_hash(path)
    assert reads == [path, path]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_a_broken_cache_is_replaced(
    cache: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    cache.mkdir(mode=0o700)
    (cache / "file-hashes.json").write_text(text)
    (cache / "file-hashes.json").chmod(0o600)
    path = write(tmp_path / "weights", b"a")
    file_hashes.cached_file_hash(path)
    assert list(json.loads((cache / "file-hashes.json").read_text())) == [str(path)]


def test_without_a_place_to_write_the_process_knows(
    reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(file_hashes, "_SETTLED_S", 0.0)
    forget(monkeypatch)
    path = write(tmp_path / "weights", b"a")
    file_hashes.cached_file_hash(path)
    file_hashes.cached_file_hash(path)
    assert reads == [path]
