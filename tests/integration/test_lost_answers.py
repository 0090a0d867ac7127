"""An object store behind a proxy that carries conditional writes out and loses their answers.

botocore asks again by itself, and is told that the name is taken: by our own first try.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.data.remote_images import fetch_photographs_folder, upload_photographs
from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.lease_keeper import LeaseWaiter, get_run_lease_files
from dreambooth_ray.storage.paths import LEASES
from dreambooth_ray.storage.store import Store
from serve.api_messages import GenerationRequest
from serve.image_job_records import ImageJobRecord, new_image_job_id
from serve.image_job_store import ImageJobStore
from tests.fault_proxy import FaultProxy, once_each
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path_factory.mktemp("lost") / "data")
    with pointed_at(server.environment):
        server.start()
        server.make_bucket("lost")
    yield server
    server.kill()


@pytest.fixture
def proxy(weed: Seaweed) -> Iterator[FaultProxy]:
    """Loses the first answer to every conditional write."""
    target = urlsplit(weed.endpoint).netloc
    proxy = FaultProxy(target, once_each(lambda request: request.is_conditional))
    with pointed_at({**weed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}):
        yield proxy
    proxy.close()


@pytest.fixture
def store(proxy: FaultProxy, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://lost/{request.node.name.replace('[', '-').strip(']')}")


def files_of(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def folders_with_files(store: Store) -> set[str]:
    """SeaweedFS goes on to list a folder that has been emptied; it holds no file."""
    filesystem, root = store.filesystem
    names = (path.removeprefix(f"{root}/").split("/") for path in filesystem.find(root))
    return {parts[0] for parts in names if len(parts) > 1 and parts[1]}


@pytest.mark.parametrize(
    "name", [paths.checkpoint(4), paths.prior_chunk_artifact(0), "chunk-00000"]
)
def test_an_artifact_whose_pointers_answer_is_lost_is_there_whole(
    store: Store, proxy: FaultProxy, tmp_path: Path, name: str
) -> None:
    manifest.commit_artifact(store, name, files_of(tmp_path / "in", a="1", b="2"), {"step": 4})
    assert [r.method for r in proxy.dropped] == ["PUT"]
    assert manifest.find_damage(store, name) is None
    assert manifest.download_artifact(store, name, tmp_path / "out") == {"step": 4}


def test_of_two_writers_the_second_removes_its_own_folder_alone(
    store: Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    manifest.commit_artifact(store, "one", files_of(tmp_path / "first", a="1"), {})
    manifest.commit_artifact(store, "one", files_of(tmp_path / "second", a="2"), {})
    assert manifest.read_artifact_file(store, "one", "a") == b"1"
    assert folders_with_files(store) == {manifest.find_artifact_folder(store, "one")}


def test_a_damaged_artifact_is_replaced_and_nothing_of_it_is_left(
    store: Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    folder = files_of(tmp_path / "in", a="1")
    manifest.commit_artifact(store, "one", folder, {})
    store.write(f"{manifest.find_artifact_folder(store, 'one')}/a", b"x")
    manifest.commit_artifact(store, "one", folder, {})
    assert manifest.find_damage(store, "one") is None
    assert folders_with_files(store) == {manifest.find_artifact_folder(store, "one")}


def test_photographs_are_uploaded_whole(
    store: Store, proxy: FaultProxy, photos: Path, tmp_path: Path
) -> None:
    uri = upload_photographs(photos, store)
    assert proxy.dropped
    found = find_photographs(fetch_photographs_folder(uri))
    assert [p.read_bytes() for p in found] == [p.read_bytes() for p in find_photographs(photos)]


def test_a_lease_is_ours_though_its_answer_was_lost(store: Store, proxy: FaultProxy) -> None:
    lease = LeaseWaiter(get_run_lease_files(store), 60.0).take()
    assert proxy.dropped
    assert store.names(LEASES) == ["000001.json"]
    with pytest.raises(StorageError, match="is being trained"):
        LeaseWaiter(get_run_lease_files(store), 60.0).take()
    lease.release()
    assert LeaseWaiter(get_run_lease_files(store), 60.0).take().number == 2
    assert store.names(LEASES) == ["000002.json"]


def test_a_bundle_is_published_whole(store: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.drops_answer = once_each(lambda request: request.method == "PUT")
    folder = files_of(tmp_path / "in", a="1")
    text = manifest.upload_folder_with_manifest(store, paths.BUNDLE, folder, {"step": 4})
    assert len(proxy.dropped) == 2
    about = manifest.download_folder(store, paths.BUNDLE, tmp_path / "out", text)
    assert about == {"step": 4}
    assert json.loads(store.read(f"{paths.BUNDLE}/manifest.json"))["about"] == about


def test_a_job_is_claimed_once(store: Store, proxy: FaultProxy) -> None:
    jobs, generation = ImageJobStore(store.uri), GenerationRequest(prompt="a robot")
    record = ImageJobRecord(
        id=new_image_job_id(), caller="me", model="base", created_at=1.0, generation=generation
    )
    jobs.add(record, None)
    num_dropped = len(proxy.dropped)
    work = jobs.claim(record, lease_s=60)
    assert work is not None
    assert len(proxy.dropped) > num_dropped
    # The same owner asks a second time: it has it already.
    assert jobs.claim(record, lease_s=60) is None
    assert jobs.renew_claim(work)
