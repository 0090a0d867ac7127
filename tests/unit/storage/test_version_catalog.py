import json
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.errors import CheckpointError, StorageError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.subject_version import SubjectVersion, parse_bundle_manifest
from dreambooth_ray.storage.version_catalog import (
    SubjectVersionCatalog,
    entry_file_name,
    publish_run,
    subject_listing_position,
    version_file_name,
    withdraw_run,
)
from dreambooth_ray.storage.version_catalog_rebuild import is_catalog_complete, rebuild_catalog

_IDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


def _commit(store: Store, run_id: str, **about: object) -> Store:
    run = store.sub(f"runs/{run_id}")
    content = {"about": {"kind": "bundle", "created_at": 1.0, **about}, "files": []}
    run.write("bundle/manifest.json", json.dumps(content).encode())
    return run


def _version(subject: str, number: int = 0, run_id: str = "") -> SubjectVersion:
    about = {"kind": "bundle", "subject": subject, "created_at": number}
    version = parse_bundle_manifest(
        run_id or subject, json.dumps({"about": about, "files": []}).encode()
    )
    assert version is not None
    return version


def _touch_entry(folder: str, subject: str) -> Path:
    """An entry's file, empty: listing reads none, and it is quicker than committing."""
    path = Path(folder, entry_file_name(subject))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def catalog(store: Store) -> SubjectVersionCatalog:
    return SubjectVersionCatalog(store)


def test_a_subject_is_there_from_its_commit_to_its_deletion(
    store: Store, catalog: SubjectVersionCatalog
) -> None:
    run = _commit(store, "dog", prompt="a sks dog")
    publish_run(run)
    entry = catalog.read("dog")
    assert (entry.newest.run_id, entry.newest.prompt) == ("dog", "a sks dog")
    assert catalog.list_subjects() == ["dog"]
    withdraw_run(run)
    with pytest.raises(FileNotFoundError):
        catalog.read("dog")
    assert store.files_after("catalog") == store.files_after("catalog_versions") == []


def test_what_is_published_again_is_written_once(
    store: Store, catalog: SubjectVersionCatalog
) -> None:
    run = _commit(store, "dog")
    publish_run(run)
    path = store.local_path(entry_file_name("dog"))
    before = path.stat().st_mtime_ns
    publish_run(run)
    assert path.stat().st_mtime_ns == before


def test_a_run_elsewhere_has_no_catalog(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "alone"))
    run.write("bundle/manifest.json", b'{"about": {"kind": "bundle"}, "files": []}')
    publish_run(run)
    assert not (tmp_path / "catalog").exists()


def test_a_run_trained_anew_replaces_its_version_and_no_other(
    store: Store, catalog: SubjectVersionCatalog
) -> None:
    for run_id, created_at in (("first", 5), ("second", 9), ("third", 7)):
        publish_run(_commit(store, run_id, subject="dog", created_at=created_at))
    assert [ref.run_id for ref in catalog.read("dog").versions] == ["second", "third", "first"]
    publish_run(_commit(store, "first", subject="dog", created_at=11))
    assert [ref.run_id for ref in catalog.read("dog").versions] == ["first", "second", "third"]
    withdraw_run(store.sub("runs/first"))
    assert catalog.read("dog").newest.run_id == "second"


@settings(max_examples=30, deadline=None)
@given(st.sets(_IDS, max_size=25), st.integers(1, 7))
def test_every_subject_comes_once_whatever_the_page(subjects: set[str], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        catalog = SubjectVersionCatalog(Store(folder))
        for subject in subjects:
            _touch_entry(folder, subject)
        pages: list[list[str]] = []
        while page := catalog.list_subjects(
            subject_listing_position(pages[-1][-1]) if pages else "", limit
        ):
            pages.append(page)
        assert all(len(page) == limit for page in pages[:-1])
        listed = [subject for page in pages for subject in page]
        assert listed == sorted(subjects, key=subject_listing_position)


@settings(max_examples=20, deadline=None)
@given(st.sets(_IDS, min_size=2, max_size=20), st.integers(1, 5), st.randoms())
def test_pages_keep_their_order_while_subjects_come_and_go(
    subjects: set[str], limit: int, rng: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        catalog, some = SubjectVersionCatalog(Store(folder)), sorted(subjects)
        rng.shuffle(some)
        staying, changing = some[: len(some) // 2], some[len(some) // 2 :]
        for subject in staying:
            _touch_entry(folder, subject)
        listed: list[str] = []
        while page := catalog.list_subjects(
            subject_listing_position(listed[-1]) if listed else "", limit
        ):
            listed += page
            path = _touch_entry(folder, rng.choice(changing))
            if rng.random() < 0.5:
                path.unlink()
        assert [s for s in listed if s in staying] == sorted(staying, key=subject_listing_position)
        assert len(listed) == len(set(listed))


@settings(max_examples=10, deadline=None)
@given(_IDS)
def test_any_id_gets_a_file_of_its_own(subject: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        catalog = SubjectVersionCatalog(Store(folder))
        catalog.add(_version(subject))
        assert catalog.read(subject).newest.subject == subject


def test_subjects_of_one_prefix_do_not_mix(catalog: SubjectVersionCatalog) -> None:
    names = [f"dog-{k}" for k in range(3000)]
    prefix = subject_listing_position(names[0])[:2]
    colliding = [name for name in names if subject_listing_position(name)[:2] == prefix][:8]
    assert len(colliding) == 8
    for subject in (*colliding, colliding[0] + ".a", colliding[0] + "-"):
        for number in range(3):
            catalog.add(_version(subject, number, f"run-{number}"))
    for subject in colliding:
        assert [ref.created_s for ref in catalog.read(subject).versions] == [2.0, 1.0, 0.0]


_DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("cut off", lambda data: data[: len(data) // 2], "cut off"),
    ("empty", lambda data: b"", "cut off"),
    ("deep", lambda data: b"[" * 10**5, "cut off"),
    ("a list", lambda data: b"[]", "cut off"),
    ("large", lambda data: data + b" " * 2**20, "cut off"),
    ("another's", lambda data: data.replace(b'"dog"', b'"cat"'), "an entry of 'cat'"),
    ("a way out", lambda data: data.replace(b'run_id":"dog"', b'run_id":"../x"'), "cut off"),
    ("newer", lambda data: data.replace(b'"format":1', b'"format":2'), "newer version"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [d[1:] for d in _DAMAGE], ids=[d[0] for d in _DAMAGE]
)
def test_a_damaged_entry_is_named_and_rebuilt(
    store: Store, catalog: SubjectVersionCatalog, damage: Callable[[bytes], bytes], message: str
) -> None:
    publish_run(_commit(store, "dog"))
    name = entry_file_name("dog")
    whole = store.read(name)
    store.write(name, damage(whole))
    with pytest.raises(CheckpointError, match=message):
        catalog.read("dog")
    report = rebuild_catalog(catalog)
    if "newer" in message:
        assert len(report.failures) == 1 and not is_catalog_complete(catalog)
        with pytest.raises(StorageError, match="newer version"):
            catalog.add(_version("dog", 5))
    else:
        assert not report.failures
        assert store.read(name) == whole


def test_a_rebuild_finds_runs_that_have_no_entry(
    store: Store, catalog: SubjectVersionCatalog
) -> None:
    for run_id in ("dog", "cat", "cat-2"):
        _commit(store, run_id, **({"subject": "cat"} if run_id == "cat-2" else {}))
    store.write("runs/half/config.yaml", b"")
    store.write("runs/odd/bundle/manifest.json", b'{"about": {"kind": "x"}, "files": []}')
    assert not is_catalog_complete(catalog)
    report = rebuild_catalog(catalog)
    assert (report.num_runs, report.num_subjects, report.num_added) == (5, 2, 3)
    assert sorted(catalog.list_subjects()) == ["cat", "dog"]
    assert len(catalog.read("cat").versions) == 2
    assert is_catalog_complete(catalog)
    assert rebuild_catalog(catalog).num_added == 0


def test_a_rebuild_removes_what_leads_nowhere(store: Store, catalog: SubjectVersionCatalog) -> None:
    # Copied from another bucket, with its run and without it.
    catalog.add(_version("elsewhere", run_id="gone"))
    _commit(store, "dog")
    catalog.add(_version("dog", 5))
    store.write("catalog/zz/stray.json", b"{}")
    store.write(version_file_name("cat", "0" * 12), b"{")
    report = rebuild_catalog(catalog)
    assert (report.num_added, report.num_removed) == (1, 3)
    assert catalog.list_subjects() == ["dog"]
    assert catalog.read("dog").newest == catalog.read_run_version("dog")
    with pytest.raises(FileNotFoundError):
        catalog.read("elsewhere")


def test_commits_and_deletions_beside_rebuilds_leave_no_trace_of_the_race(
    store: Store, catalog: SubjectVersionCatalog
) -> None:
    stop = threading.Event()

    def rebuild() -> None:
        while not stop.is_set():
            rebuild_catalog(catalog)

    def work(run_id: str) -> None:
        for number in range(6):
            run = _commit(store, run_id, subject="dog", created_at=number, prompt=run_id)
            publish_run(run)
            if number % 2:
                withdraw_run(run)
                run.remove("bundle/manifest.json")
        publish_run(_commit(store, run_id, subject="dog", created_at=100, prompt=run_id))

    rebuilders = [threading.Thread(target=rebuild) for _ in range(2)]
    workers = [threading.Thread(target=work, args=(f"run-{k}",)) for k in range(4)]
    for thread in (*rebuilders, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    for thread in rebuilders:
        thread.join()
    live = {f"run-{k}" for k in range(4)}
    assert live <= {ref.run_id for ref in catalog.read("dog").versions}
    rebuild_catalog(catalog)
    refs = catalog.read("dog").versions
    assert {ref.run_id for ref in refs} == live and len(refs) == 4


@pytest.mark.parametrize("method", ["write", "remove_file"])
def test_a_commit_just_before_an_entry_is_replaced_is_not_lost(
    store: Store, catalog: SubjectVersionCatalog, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _commit(store, "first", subject="dog")
    if method == "remove_file":
        publish_run(first)
    change, interrupted = getattr(Store, method), list[str]()

    def change_after_a_commit(self: Store, name: str, *arguments: object) -> None:
        if name == entry_file_name("dog") and not interrupted:
            interrupted.append(name)
            publish_run(_commit(store, "second", subject="dog", prompt="later"))
        change(self, name, *arguments)

    monkeypatch.setattr(Store, method, change_after_a_commit)
    if method == "remove_file":
        withdraw_run(first)
    else:
        publish_run(first)
    assert interrupted
    run_ids = {ref.run_id for ref in catalog.read("dog").versions}
    assert run_ids == ({"second"} if method == "remove_file" else {"first", "second"})
