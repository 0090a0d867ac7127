import asyncio
import threading
import time
from pathlib import Path

import pytest

from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import SubjectEntry, SubjectVersionCatalog
from serve import subject_lookup
from serve.api_errors import APIError
from serve.bounded_cache import BoundedCache
from serve.subject_lookup import SubjectLookup
from tests.unit.serve.test_subject_pages import write_entries


class CountedCatalog(SubjectVersionCatalog):
    """Counts what is read; names that begin with `slow` wait for `gate`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Store(str(folder)))
        self.names, self.gate = list[str](), threading.Event()

    def read(self, subject: str) -> SubjectEntry:
        self.names.append(subject)
        if subject.startswith("slow"):
            self.gate.wait(30)
        return super().read(subject)


def test_a_thousand_unknown_names_cost_a_request_each_and_no_more(tmp_path: Path) -> None:
    async def story() -> None:
        catalog = CountedCatalog(tmp_path)
        lookup = SubjectLookup(catalog, ttl_s=3600.0)
        names = [f"nobody-{k}" for k in range(1000)]
        for _ in range(3):
            for start in range(0, 1000, 100):
                batch = names[start : start + 100]
                entries = await asyncio.gather(*map(lookup.read_entry, batch))
                assert entries == [None] * 100
        assert sorted(catalog.names) == sorted(names)

    asyncio.run(story())


def test_what_is_remembered_of_unknown_names_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject_lookup, "_KEPT_UNKNOWN", 10)

    async def story() -> None:
        catalog = CountedCatalog(tmp_path)
        lookup = SubjectLookup(catalog, ttl_s=3600.0)
        for k in range(100):
            await lookup.read_entry(f"nobody-{k}")
        assert len(lookup._unknown) == 10

    asyncio.run(story())


def test_nobody_waits_for_names_that_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject_lookup, "_MOST_UNKNOWN_WAITING", 20)
    write_entries(str(tmp_path), {"dog"})

    async def story() -> None:
        catalog = CountedCatalog(tmp_path)
        lookup = SubjectLookup(catalog, ttl_s=0.0)
        await lookup.read_entry("dog")
        unknown = [asyncio.create_task(lookup.read_entry(f"slow-{k}")) for k in range(30)]
        await asyncio.sleep(0)
        for _ in range(5):
            entry = await lookup.read_entry("dog")
            assert entry is not None
        results = await asyncio.gather(*unknown[20:], return_exceptions=True)
        assert all(isinstance(r, APIError) and r.status == 503 for r in results)
        catalog.gate.set()
        assert await asyncio.gather(*unknown[:20]) == [None] * 20

    asyncio.run(story())


def test_who_asks_at_once_shares_a_request(tmp_path: Path) -> None:
    async def story() -> None:
        catalog = CountedCatalog(tmp_path)
        lookup = SubjectLookup(catalog, ttl_s=3600.0)
        first = asyncio.create_task(lookup.read_entry("slow"))
        others = [asyncio.create_task(lookup.read_entry("slow")) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        catalog.gate.set()
        assert await asyncio.gather(*others) == [None] * 5
        assert catalog.names == ["slow"]

    asyncio.run(story())


def test_a_new_subject_is_found_once_its_absence_is_old(tmp_path: Path) -> None:
    async def story() -> None:
        lookup = SubjectLookup(CountedCatalog(tmp_path), ttl_s=0.05)
        assert await lookup.read_entry("dog") is None
        write_entries(str(tmp_path), {"dog"})
        deadline_s = time.monotonic() + 30
        while await lookup.read_entry("dog") is None:
            assert time.monotonic() < deadline_s

    asyncio.run(story())


def test_a_cache_forgets_what_was_unused_for_longest() -> None:
    cache = BoundedCache[tuple[int, ...]](6, len)
    cache.put("a", (1, 2))
    cache.put("b", (1, 2))
    assert cache.get("a") == (1, 2)
    cache.put("c", (1, 2, 3))
    assert (cache.get("b"), len(cache), cache.weight) == (None, 2, 5)
    cache.put("a", (1,))
    assert cache.weight == 4
    cache.put("heavy", (0,) * 7)
    assert (len(cache), cache.weight) == (0, 0)
