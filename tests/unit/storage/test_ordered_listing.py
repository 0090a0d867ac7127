import tempfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.storage.store import Store

_PART = st.text("aA0.-_@", min_size=1, max_size=3).filter(lambda part: part.strip("."))
_NAMES = st.sets(st.tuples(_PART, _PART).map("/".join), max_size=12)


def _pages(store: Store, limit: int) -> list[str]:
    names: list[str] = []
    while page := store.files_after("folder", names[-1] if names else "", limit):
        assert len(page) <= limit
        names += page
    return names


@settings(max_examples=40, deadline=None)
@given(_NAMES, st.integers(1, 5))
def test_every_file_comes_once_in_the_order_of_an_object_store(names: set[str], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, "folder", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        assert _pages(Store(folder), limit) == sorted(names)


def test_other_filesystems_are_walked_the_same_way() -> None:
    filesystem, names = fsspec.filesystem("memory"), ["0a/x.json", "0a/y.json", "b", "b.a/z"]
    for name in names:
        filesystem.pipe_file(f"/ordered/folder/{name}", b"")
    store = Store("memory://ordered")
    assert _pages(store, 3) == sorted(names)
    filesystem.rm("/ordered", recursive=True)


def test_nothing_is_listed_of_what_is_not_there_or_not_finished(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.files_after("nowhere") == []
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json.1234.partial").touch()
    assert store.files_after("folder") == []


@pytest.mark.parametrize("after", ["0a/y.json", "0a/zz", "0b"])
def test_the_name_to_go_on_from_need_not_be_there(tmp_path: Path, after: str) -> None:
    for name in ("0a/x.json", "0c/x.json"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True)
        (tmp_path / "folder" / name).touch()
    assert Store(str(tmp_path)).files_after("folder", after) == ["0c/x.json"]
