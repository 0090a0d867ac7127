import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def make(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def folder_of(store: Store, name: str) -> str:
    return str(json.loads(store.read(f"{name}.json"))["folder"])


def test_what_is_committed_comes_back(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "c/one", make(tmp_path / "in", a="1", b="22"), {"step": 3})
    about = manifest.download_artifact(store, "c/one", tmp_path / "out")
    assert about == {"step": 3}
    assert (tmp_path / "out" / "b").read_text() == "22"
    assert manifest.find_damage(store, "c/one") is None


def test_an_uncommitted_upload_is_invisible(store: Store, tmp_path: Path) -> None:
    manifest.upload_folder_with_manifest(store, "c/one-abc", make(tmp_path / "in", a="1"), {})
    with pytest.raises(CheckpointError, match="not committed"):
        manifest.download_artifact(store, "c/one", tmp_path / "out")


def test_a_second_commit_of_an_intact_artifact_changes_nothing(
    store: Store, tmp_path: Path
) -> None:
    manifest.commit_artifact(store, "one", make(tmp_path / "in", a="1"), {})
    before = folder_of(store, "one")
    manifest.commit_artifact(store, "one", make(tmp_path / "other", a="2"), {})
    assert folder_of(store, "one") == before
    assert store.names() == [before, "one.json"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    base = tmp_path_factory.mktemp("flip")
    store = Store(str(base / "store"))
    manifest.commit_artifact(
        store, "one", make(base / "in", a="some bytes", b="and more"), {"k": 1}
    )
    files = sorted(p for p in (base / "store").rglob("*") if p.is_file())
    sizes = [p.stat().st_size for p in files]
    place %= sum(sizes)
    for path, size in zip(files, sizes, strict=True):
        if place < size:
            data = bytearray(path.read_bytes())
            data[place] ^= 1 << bit
            path.write_bytes(data)
            break
        place -= size
    # A pointer's spelling of its keys may break as well: any of these is refused.
    assert manifest.find_damage(store, "one") is not None
    with pytest.raises(CheckpointError):
        manifest.download_artifact(store, "one", base / "out")


def test_a_damaged_artifact_is_replaced_by_a_new_commit(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "one", make(tmp_path / "in", a="1"), {})
    store.write(f"{folder_of(store, 'one')}/a", b"x")
    manifest.commit_artifact(store, "one", tmp_path / "in", {})
    assert manifest.find_damage(store, "one") is None


def test_a_missing_file_is_damage(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "one", make(tmp_path / "in", a="1"), {})
    store.remove(f"{folder_of(store, 'one')}/a")
    assert "missing" in str(manifest.find_damage(store, "one"))


def test_discard_leaves_nothing(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "one", make(tmp_path / "in", a="1"), {})
    manifest.remove_artifact(store, "one")
    manifest.remove_artifact(store, "one")
    assert store.names() == []


def test_a_pointer_without_its_keys_is_damage(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "one", make(tmp_path / "in", a="1"), {})
    pointer = json.loads(store.read("one.json"))
    store.write("one.json", json.dumps({"folder": pointer["folder"]}).encode())
    assert "damaged" in str(manifest.find_damage(store, "one"))


def test_a_newer_versions_manifest_is_named(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "a", make(tmp_path / "in", a="1"), {})
    folder = str(manifest.find_artifact_folder(store, "a"))
    text = json.loads(store.read(f"{folder}/manifest.json"))
    repoint(store, folder, json.dumps({**text, "format": 99}).encode())
    with pytest.raises(CheckpointError, match=r"newer version \(format 99"):
        manifest.download_artifact(store, "a", tmp_path / "out")


def test_a_manifest_cut_off_is_named(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "a", make(tmp_path / "in", a="1"), {})
    folder = str(manifest.find_artifact_folder(store, "a"))
    repoint(store, folder, store.read(f"{folder}/manifest.json")[:40])
    with pytest.raises(CheckpointError, match="cut off"):
        manifest.download_artifact(store, "a", tmp_path / "out")


def repoint(store: Store, folder: str, text: bytes) -> None:
    store.write(f"{folder}/manifest.json", text)
    pointer = {"folder": folder, "manifest_sha256": manifest.bytes_hash(text)}
    store.write("a.json", json.dumps(pointer).encode())


def test_files_are_hashed_while_they_are_sent(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "in", a="1", b="22")
    opened: list[str] = []
    open_path = Path.open

    def count(path: Path, mode: str = "r") -> object:
        opened.append(path.name)
        return open_path(path, mode)

    monkeypatch.setattr(Path, "open", count)
    entries = manifest.upload_files(store, "one", folder)
    assert [opened.count(name) for name in "ab"] == [1, 1]
    assert entries == manifest.local_entries(folder)


def test_a_file_cut_off_or_gone_is_told_without_reading(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "one", make(tmp_path / "in", a="1", b="22"), {})
    assert manifest.find_size_or_checksum_mismatch(store, "one") is None
    store.write(f"{folder_of(store, 'one')}/b", b"2")
    assert "b differs" in str(manifest.find_size_or_checksum_mismatch(store, "one"))
    store.remove(f"{folder_of(store, 'one')}/b")
    assert "missing" in str(manifest.find_size_or_checksum_mismatch(store, "one"))


def test_a_manifest_with_and_without_checksums_is_read(store: Store, tmp_path: Path) -> None:
    manifest.commit_artifact(store, "a", make(tmp_path / "in", a="1"), {})
    folder = folder_of(store, "a")
    content = json.loads(store.read(f"{folder}/manifest.json"))
    assert "checksum" not in content["files"][0]
    content["files"][0]["checksum"] = "CRC32:g9zvtw=="
    repoint(store, folder, json.dumps(content).encode())
    assert manifest.find_size_or_checksum_mismatch(store, "a") is None
    assert manifest.download_artifact(store, "a", tmp_path / "out") == {}
