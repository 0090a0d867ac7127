import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.store import Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "s"))
    return Store(f"memory://{tmp_path.parent.name}-{tmp_path.name.strip(chr(91) + chr(93))}")


def test_write_read_replace_and_list(store: Store) -> None:
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"two")
    store.write("a/c.txt", b"")
    assert store.read("a/b.txt") == b"two"
    assert store.names("a") == ["b.txt", "c.txt"]
    assert store.names("nowhere") == []


def test_create_does_not_replace(store: Store) -> None:
    assert store.create("x", b"first")
    assert not store.create("x", b"second")
    assert store.read("x") == b"first"


def test_of_many_creators_one_wins(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.create("prize", str(i).encode()), range(32)))
    assert sum(won) == 1
    assert store.read("prize") == str(won.index(True)).encode()
    assert store.names() == ["prize"]


def test_upload_and_download(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"\x00data")
    store.upload(source, "folder/file")
    store.download("folder/file", tmp_path / "deep" / "target")
    assert (tmp_path / "deep" / "target").read_bytes() == b"\x00data"


def test_a_missing_download_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Store(str(tmp_path / "s")).download("none", tmp_path / "t" / "target")
    assert list((tmp_path / "t").iterdir()) == []


def test_remove_takes_files_and_folders(store: Store) -> None:
    store.write("d/e/f", b"1")
    store.remove("d")
    store.remove("d")
    assert not store.exists("d/e/f")


def test_sub_stores_share_the_tree(store: Store) -> None:
    store.sub("in/side").write("f", b"1")
    assert store.read("in/side/f") == b"1"


def test_unwritable_storage_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        Store(str(tmp_path / "file")).check_writable()


def test_storage_without_hard_links_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(StorageError, match=r"no hard links.*choose another storage\.uri"):
        Store(str(tmp_path)).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_what_is_created_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").read_bytes())
        assert not (tmp_path / "pointer").exists()

    monkeypatch.setattr(os, "fsync", note)
    Store(str(tmp_path)).create("pointer", b"content")
    assert synced == [b"content"]


def test_a_folder_that_goes_while_a_file_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path.hardlink_to

    def remove_folder_first(path: Path, target: Path) -> None:
        monkeypatch.undo()
        shutil.rmtree(path.parent)
        link(path, target)

    monkeypatch.setattr(Path, "hardlink_to", remove_folder_first)
    assert Store(str(tmp_path)).create("folder/file", b"content")
    assert Store(str(tmp_path)).read("folder/file") == b"content"


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code, "Message": ""}}


@pytest.mark.parametrize("code", ["PreconditionFailed", "412"])
def test_a_name_is_taken_by_the_stores_code_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """A lost answer of a create that is sent again ends there, too."""
    store = Store(f"memory://{tmp_path.name}")
    store.write("mine", b"first")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, None) from ClientError(code)

    monkeypatch.setattr(type(store.filesystem[0]), "pipe_file", refuse)
    assert store.create("mine", b"first")
    assert not store.create("mine", b"second")


def test_a_writable_store_is_left_as_it_was(store: Store) -> None:
    store.check_writable()
    assert store.names() == []


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(StorageError, match=r"storage\.uri"):
        Store("nosuch://bucket")


def test_only_a_local_store_has_paths(tmp_path: Path) -> None:
    assert Store(str(tmp_path)).local_path("a") == tmp_path / "a"
    with pytest.raises(StorageError):
        Store("memory://x").local_path()


def test_a_file_is_described_and_its_hash_comes_with_the_download(
    store: Store, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    sent = store.upload(source, "file")
    assert store.describe("file").size_bytes == sent.size_bytes == 4
    assert store.download("file", tmp_path / "target") == sent.sha256
    with pytest.raises(FileNotFoundError):
        store.describe("nowhere")
