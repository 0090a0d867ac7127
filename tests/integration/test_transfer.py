"""Large files on their way to an object store and back, some with their answers lost."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dreambooth_ray.errors import CheckpointError, StorageError
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from tests.fault_proxy import FaultProxy, Request, Rule, once_each
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at

# Three parts, the last a short one.
SIZE = 2 * 2**25 + 1000


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path_factory.mktemp("transfer") / "data")
    with pointed_at(server.environment):
        server.start()
        server.make_bucket("large")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "large").write_bytes(os.urandom(SIZE))
    (folder / "small").write_bytes(b"small")
    return folder


def is_part(request: Request) -> bool:
    return request.method == "PUT" and "partNumber=" in request.path


def is_completion(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path


@pytest.fixture
def lossy(weed: Seaweed, request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    rule: Rule = once_each(getattr(request, "param", lambda _: False))
    proxy = FaultProxy(urlsplit(weed.endpoint).netloc, rule)
    with pointed_at({**weed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}):
        yield proxy
    proxy.close()


@pytest.fixture
def store(lossy: FaultProxy, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://large/{request.node.name.replace('[', '-').strip(']')}")


@pytest.mark.parametrize("lossy", [lambda _: False, is_part, is_completion], indirect=True)
def test_the_store_confirms_the_whole_files_checksum(
    store: Store, lossy: FaultProxy, folder: Path, tmp_path: Path
) -> None:
    manifest.commit_artifact(store, "one", folder, {})
    written = json.loads(store.read(f"{manifest.find_artifact_folder(store, 'one')}/manifest.json"))
    assert [entry["checksum"][:6] for entry in written["files"]] == ["CRC32:", "CRC32:"]
    lossy.requests.clear()
    assert manifest.find_size_or_checksum_mismatch(store, "one") is None
    # Pointer, manifest, and no file: storage is asked what it has.
    kinds = [request.method for request in lossy.requests if "large/one-" in request.path]
    assert kinds.count("GET") <= 1
    manifest.download_artifact(store, "one", tmp_path / "out")
    assert (tmp_path / "out" / "large").read_bytes() == (folder / "large").read_bytes()


def test_other_bytes_of_the_same_size_are_seen_without_reading_them(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    manifest.commit_artifact(store, "one", folder, {})
    other = tmp_path / "other"
    other.write_bytes(os.urandom(SIZE))
    store.upload(other, f"{manifest.find_artifact_folder(store, 'one')}/large")
    assert "differs" in str(manifest.find_size_or_checksum_mismatch(store, "one"))
    with pytest.raises(CheckpointError, match="differs from its manifest"):
        manifest.download_artifact(store, "one", tmp_path / "out")


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_that_was_cut_off_is_damage(
    store: Store, folder: Path, tmp_path: Path, size: int
) -> None:
    """Beyond its end the store has no range to give."""
    manifest.commit_artifact(store, "one", folder, {})
    store.write(f"{manifest.find_artifact_folder(store, 'one')}/large", bytes(size))
    with pytest.raises(CheckpointError, match=r"is cut off|differs from its manifest"):
        manifest.download_artifact(store, "one", tmp_path / "out")
    assert not (tmp_path / "out" / "large").exists()


def test_an_upload_that_fails_leaves_no_parts(
    store: Store, lossy: FaultProxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, _ = store.filesystem
    answers = filesystem.call_s3

    def refuse_completion(method: str, **arguments: object) -> object:
        if method == "complete_multipart_upload":
            raise PermissionError("denied")
        return answers(method, **arguments)

    monkeypatch.setattr(filesystem, "call_s3", refuse_completion)
    with pytest.raises(StorageError, match="access is denied"):
        store.upload(folder / "large", "refused")
    assert not answers("list_multipart_uploads", Bucket="large").get("Uploads")
    assert not store.exists("refused")


def test_a_store_that_knows_no_checksums_gets_the_file_without(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, _ = store.filesystem
    answers = filesystem.call_s3

    def know_no_checksums(method: str, **arguments: object) -> object:
        if any(name.startswith("Checksum") for name in arguments) and method != "head_object":
            raise OSError(22, "An argument is not supported: checksum")
        answer = answers(method, **arguments)
        return {k: v for k, v in answer.items() if not k.startswith("Checksum")}

    monkeypatch.setattr(filesystem, "call_s3", know_no_checksums)
    sent = store.upload(folder / "large", "plain")
    assert (sent.checksum, sent.sha256) == (None, manifest.file_hash(folder / "large"))
