import asyncio
import json
import shutil
import threading
import time
from collections.abc import Coroutine
from pathlib import Path

import pytest

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.subject_version import parse_bundle_manifest
from dreambooth_ray.storage.version_catalog import (
    SubjectEntry,
    SubjectVersionCatalog,
    entry_file_name,
    publish_run,
    withdraw_run,
)
from serve.api_errors import APIError
from serve.auth import APIKey, Caller
from serve.subject_catalog import SubjectCatalog

EVERYBODY = Caller("address:x", None)


def _run(storage: Path, run_id: str) -> Store:
    return Store(str(storage)).sub(f"runs/{run_id}")


def _write_bundle(
    storage: Path, run_id: str, files: tuple[str, ...] = ("unet/a.safetensors",), **about: object
) -> Store:
    content = {
        "about": {"kind": "bundle", "prompt": "a sks dog", **about},
        "files": [{"name": n, "size_bytes": 1, "sha256": "0" * 64} for n in files],
    }
    run = _run(storage, run_id)
    run.write("bundle/manifest.json", json.dumps(content).encode())
    return run


def _commit(
    storage: Path, run_id: str, files: tuple[str, ...] = ("unet/a.safetensors",), **about: object
) -> Store:
    run = _write_bundle(storage, run_id, files, **about)
    publish_run(run)
    return run


class Clock:
    """Moves on by itself, so that each look is at storage."""

    def __init__(self, step_s: float = 100.0) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def _catalog(tmp_path: Path, clock: Clock | None = None) -> SubjectCatalog:
    config = ServeConfig.model_validate({"storage": {"uri": str(tmp_path)}})
    return SubjectCatalog(config, clock or Clock())


def _allow_all(_: str) -> bool:
    return True


def _refuse(work: Coroutine[None, None, object]) -> APIError:
    with pytest.raises(APIError) as refused:
        asyncio.run(work)
    return refused.value


async def _list_ids(catalog: SubjectCatalog, caller: Caller = EVERYBODY) -> list[str]:
    return [answer.id for answer in (await catalog.list_models_page(100, None, caller)).data]


def test_a_subject_counts_from_its_commit_to_its_deletion(tmp_path: Path) -> None:
    async def story() -> None:
        catalog = _catalog(tmp_path)
        with pytest.raises(APIError) as refused:
            await catalog.resolve_served_subject("dog", _allow_all)
        assert refused.value.status == 404
        run = _commit(tmp_path, "dog")
        dog = await catalog.resolve_served_subject("dog", _allow_all)
        assert dog.prompt == "a sks dog"
        assert (await catalog.resolve_served_subject(dog.id, _allow_all)) == dog
        assert (await catalog.describe_model("dog", _allow_all)).versions == [dog.id]
        assert await _list_ids(catalog) == ["toyworld", "dog"]
        withdraw_run(run)
        with pytest.raises(APIError):
            await catalog.resolve_served_subject("dog", _allow_all)
        assert await _list_ids(catalog) == ["toyworld"]

    asyncio.run(story())


def test_versions_are_newest_first(tmp_path: Path) -> None:
    async def story() -> None:
        catalog = _catalog(tmp_path)
        for run_id, created_at in (("r1", 5), ("r2", 9), ("r3", 7)):
            _commit(tmp_path, run_id, subject="dog", created_at=created_at)
        newest = await catalog.resolve_served_subject("dog", _allow_all)
        assert newest.artifact.folder == "runs/r2/bundle"
        ids = (await catalog.describe_model("dog", _allow_all)).versions
        subjects = [await catalog.resolve_served_subject(id_, _allow_all) for id_ in ids]
        folders = [subject.artifact.folder for subject in subjects]
        assert folders == ["runs/r2/bundle", "runs/r3/bundle", "runs/r1/bundle"]

    asyncio.run(story())


def test_files_removed_by_hand_leave_the_version_before(tmp_path: Path) -> None:
    async def story() -> None:
        catalog = _catalog(tmp_path)
        _commit(tmp_path, "r1", subject="dog", created_at=5)
        _commit(tmp_path, "r2", subject="dog", created_at=9)
        newest = await catalog.resolve_served_subject("dog", _allow_all)
        shutil.rmtree(tmp_path / "runs/r2")
        before = await catalog.resolve_served_subject("dog", _allow_all)
        assert before.artifact.folder == "runs/r1/bundle"
        with pytest.raises(APIError) as refused:
            await catalog.resolve_served_subject(newest.id, _allow_all)
        assert refused.value.status == 404
        # Another bundle where the entry's was: not what was committed under this name.
        _write_bundle(tmp_path, "r1", subject="dog", created_at=6)
        with pytest.raises(APIError):
            await catalog.resolve_served_subject("dog", _allow_all)

    asyncio.run(story())


def test_other_peoples_subjects_answer_as_if_they_were_not_there(tmp_path: Path) -> None:
    _commit(tmp_path, "dog")
    catalog = _catalog(tmp_path)
    not_mine = _refuse(catalog.resolve_served_subject("dog", lambda name: name != "dog"))
    not_there = _refuse(catalog.resolve_served_subject("cat", _allow_all))
    assert not_mine.message.replace("dog", "cat") == not_there.message


@pytest.mark.parametrize(
    "name",
    [
        "unet/weights.bin",
        "pytorch_model.pt",
        "../../etc/passwd",
        "a/../b.json",
        "/etc/x.json",
        "unet/x.pkl",
    ],
)
def test_a_bundle_with_a_pickle_or_a_way_out_is_refused(tmp_path: Path, name: str) -> None:
    _commit(tmp_path, "dog", ("unet/a.safetensors", name))
    refused = _refuse(_catalog(tmp_path).resolve_served_subject("dog", _allow_all))
    assert (refused.status, refused.code) == (422, "model_unusable")
    assert asyncio.run(_list_ids(_catalog(tmp_path))) == ["toyworld"]


def test_an_entry_says_nothing_of_what_a_bundle_holds(tmp_path: Path) -> None:
    """Files are judged by the manifest, whatever an entry was made to say."""
    _commit(tmp_path, "dog", ("unet/a.pkl",))
    path = tmp_path / entry_file_name("dog")
    entry = json.loads(path.read_text())
    assert entry["newest"]["fault"]
    path.write_text(json.dumps(entry | {"newest": entry["newest"] | {"fault": None}}))
    assert _refuse(_catalog(tmp_path).resolve_served_subject("dog", _allow_all)).status == 422


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"about": 3, "files": []}', b'{"about": {"kind": "x"}, "files": []}',
     b'{"about": {"kind": "bundle", "subject": "../x"}, "files": []}', b"[" * 10**5,
     b'{"about": {"kind": "bundle", "created_at": 1e999}, "files": []}'],
)  # fmt: skip
def test_what_is_no_manifest_is_no_subject(manifest: bytes) -> None:
    assert parse_bundle_manifest("run", manifest) is None


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 101, "dog@", "dög", "a b", "~3f", "a\n"])
def test_odd_names_are_unknown_and_cost_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list[str]()
    monkeypatch.setattr(SubjectVersionCatalog, "read", lambda _, name: names.append(name))
    catalog = _catalog(tmp_path)
    if name:
        assert _refuse(catalog.resolve_served_subject(name, _allow_all)).status == 404
    assert [n for n in names if n != "dog"] == []


@pytest.mark.parametrize(
    ("damage", "word"),
    [(b"{", "cut off"), (b'{"format": 2}', "newer version"), (b"", "cut off")],
)
def test_a_damaged_entry_is_said_to_be_so(tmp_path: Path, damage: bytes, word: str) -> None:
    _commit(tmp_path, "cat")
    _commit(tmp_path, "dog")
    (tmp_path / entry_file_name("dog")).write_bytes(damage)
    refused = _refuse(_catalog(tmp_path).resolve_served_subject("dog", _allow_all))
    assert (refused.status, refused.code) == (422, "model_unusable")
    assert word in refused.message
    # Nobody else's concern.
    assert asyncio.run(_list_ids(_catalog(tmp_path))) == ["toyworld", "cat"]


def test_storage_that_is_away_leaves_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("away")

    async def story() -> None:
        catalog = _catalog(tmp_path)
        _commit(tmp_path, "dog")
        dog = await catalog.resolve_served_subject("dog", _allow_all)
        monkeypatch.setattr(Store, "read", fail)
        assert await catalog.resolve_served_subject("dog", _allow_all) == dog
        with pytest.raises(APIError) as refused:
            await catalog.resolve_served_subject("cat", _allow_all)
        assert (refused.value.status, refused.value.code) == (503, "storage_away")
        monkeypatch.setattr(Store, "files_after", fail)
        with pytest.raises(APIError) as no_page:
            await catalog.list_models_page(10, None, EVERYBODY)
        assert no_page.value.code == "storage_away"

    asyncio.run(story())


@pytest.mark.parametrize(("num_runs", "is_made"), [(2, True), (3, False)])
def test_runs_of_earlier_releases_get_entries_when_an_endpoint_starts(
    tmp_path: Path, num_runs: int, is_made: bool, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("serve.subject_catalog._MOST_RUNS_AT_START", 2)
    for k in range(num_runs):
        _write_bundle(tmp_path, f"dog-{k}")

    async def story() -> None:
        catalog = _catalog(tmp_path)
        await catalog.start_catalog_rebuild()
        assert ("dog-0" in await _list_ids(catalog)) == is_made

    asyncio.run(story())
    assert ("catalog rebuild" in caplog.text) != is_made


@pytest.mark.parametrize("first_asks", ["before it begins", "while it runs", "as it ends"])
def test_who_asks_while_an_endpoint_starts_gets_what_is_there(
    tmp_path: Path, first_asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of the time before, that there is no such subject, is not believed after it."""
    _write_bundle(tmp_path, "dog")
    is_first_read, may_complete = threading.Event(), threading.Event()
    complete, read = SubjectCatalog._rebuild_incomplete_catalog, SubjectVersionCatalog.read

    def complete_when_told(catalog: SubjectCatalog) -> None:
        assert may_complete.wait(10)
        complete(catalog)

    def read_and_tell(catalog: SubjectVersionCatalog, subject: str) -> SubjectEntry:
        try:
            return read(catalog, subject)
        finally:
            is_first = not is_first_read.is_set()
            is_first_read.set()
            if is_first and first_asks == "as it ends":
                may_complete.set()
                while not (tmp_path / "catalog_complete.json").exists():
                    time.sleep(0.001)

    monkeypatch.setattr(SubjectCatalog, "_rebuild_incomplete_catalog", complete_when_told)
    monkeypatch.setattr(SubjectVersionCatalog, "read", read_and_tell)

    async def story() -> None:
        catalog = _catalog(tmp_path, Clock(step_s=0.0))
        preparation = asyncio.create_task(catalog.start_catalog_rebuild())
        if first_asks != "before it begins":
            await asyncio.sleep(0)
        first = asyncio.create_task(catalog.resolve_served_subject("dog", _allow_all))
        await asyncio.to_thread(is_first_read.wait, 10)
        may_complete.set()
        await preparation
        assert (await catalog.resolve_served_subject("dog", _allow_all)).name == "dog"
        assert (await first).name == "dog"

    asyncio.run(story())


def test_a_key_that_names_its_subjects_lists_those(tmp_path: Path) -> None:
    for name in ("dog", "cat", "toyworld", "eel"):
        _commit(tmp_path, name)
    key = APIKey(name="k", sha256="0" * 64, subjects=("toyworld", "eel", "dog", "nobody"))
    ids = asyncio.run(_list_ids(_catalog(tmp_path), Caller("key:k", key)))
    assert ids[0] == "toyworld" and sorted(ids[1:]) == ["dog", "eel"]
