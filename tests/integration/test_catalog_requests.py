"""What the catalog and an endpoint ask of an object store, counted on the way to it."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import (
    SubjectVersionCatalog,
    entry_file_name,
    publish_run,
    subject_listing_position,
    withdraw_run,
)
from dreambooth_ray.storage.version_catalog_rebuild import rebuild_catalog
from serve import image_job_runner
from serve.auth import Caller
from serve.deployment import build_app_state
from serve.subject_catalog import SubjectCatalog
from serve.subject_lookup import SubjectLookup
from tests.fault_proxy import FaultProxy
from tests.unit.serve.test_subject_pages import build_entry

EVERYBODY = Caller("address:x", None)


@pytest.fixture
def store(proxied_uri: str) -> Store:
    return Store(proxied_uri)


def count(proxy: FaultProxy, work: Callable[[], object]) -> dict[str, int]:
    """Requests of some work, by kind."""
    num_before = len(proxy.requests)
    work()
    return dict(Counter(request.kind for request in proxy.requests[num_before:]))


def write_entries(store: Store, subjects: set[str]) -> None:
    filesystem, root = store.filesystem
    texts = {s: build_entry(s).model_dump_json().encode() for s in subjects}
    filesystem.pipe({f"{root}/{entry_file_name(s)}": text for s, text in texts.items()})


def commit(store: Store, run_id: str, **about: object) -> Store:
    run = store.sub(f"runs/{run_id}")
    content = {"about": {"kind": "bundle", "created_at": 1.0, **about}, "files": []}
    run.write("bundle/manifest.json", json.dumps(content).encode())
    return run


def test_an_operation_costs_the_same_however_many_subjects_there_are(
    store: Store, fault_proxy: FaultProxy
) -> None:
    catalog, costs = SubjectVersionCatalog(store), list[dict[str, dict[str, int]]]()
    for num_subjects in (120, 700):
        write_entries(store, {f"dog-{k}" for k in range(num_subjects)})
        subjects = SubjectCatalog(ServeConfig.model_validate({"storage": {"uri": store.uri}}))
        run = commit(store, f"new-{num_subjects}")

        def look_up() -> None:
            with pytest.raises(FileNotFoundError):
                catalog.read("nobody")

        def show_page(subjects: SubjectCatalog = subjects) -> None:
            page = asyncio.run(subjects.list_models_page(100, None, EVERYBODY))
            assert len(page.data) == 100 and page.has_more

        costs.append(
            {
                "look-up": count(fault_proxy, lambda: catalog.read("dog-7")),
                "look-up of nothing": count(fault_proxy, look_up),
                "page": count(fault_proxy, show_page),
                "commit": count(fault_proxy, lambda run=run: publish_run(run)),  # type: ignore[misc]
                "commit again": count(fault_proxy, lambda run=run: publish_run(run)),  # type: ignore[misc]
                "deletion": count(fault_proxy, lambda run=run: withdraw_run(run)),  # type: ignore[misc]
            }
        )
    assert costs[0] == costs[1]
    assert costs[0]["look-up"] == costs[0]["look-up of nothing"] == {"GET catalog": 1}
    # One base model, and of the subjects one more, to see whether a page follows.
    assert costs[0]["page"] == {"LIST catalog": 1, "GET catalog": 99}
    assert costs[0]["commit again"] == {"GET manifest": 1, "GET catalog": 1}
    assert sum(costs[0]["commit"].values()) <= 12


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sets(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,12}\Z"), min_size=1, max_size=30),
    st.integers(1, 7),
    st.integers(0, 10**9),
)
def test_every_subject_comes_once_on_a_real_store(
    proxied_uri: str, subjects: set[str], limit: int, number: int
) -> None:
    store = Store(f"{proxied_uri}/{number}-{limit}-{len(subjects)}")
    store.remove("")
    write_entries(store, subjects)
    catalog, listed = SubjectVersionCatalog(store), list[str]()
    while page := catalog.list_subjects(
        subject_listing_position(listed[-1]) if listed else "", limit
    ):
        listed += page
    assert listed == sorted(subjects, key=subject_listing_position)


def test_a_thousand_names_that_do_not_exist_cost_a_thousand_requests(
    store: Store, fault_proxy: FaultProxy
) -> None:
    lookup = SubjectLookup(SubjectVersionCatalog(store, 2.0), ttl_s=3600.0)

    async def ask() -> None:
        for start in range(0, 1000, 200):
            names = [f"nobody-{k}" for k in range(start, start + 200)]
            for _ in range(2):
                assert await asyncio.gather(*map(lookup.read_entry, names)) == [None] * 200

    assert count(fault_proxy, lambda: asyncio.run(ask())) == {"GET catalog": 1000}


def test_an_idle_endpoint_asks_seldom(
    store: Store, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServeConfig.model_validate({"storage": {"uri": store.uri}})
    looks_a_minute = 60 / image_job_runner._IDLE_INTERVAL_S
    monkeypatch.setattr(image_job_runner, "_IDLE_INTERVAL_S", 0.05)
    app_state = build_app_state(config, {"Replica": None})

    async def run_idle() -> None:
        await app_state.catalog.start_catalog_rebuild()
        watch_task = asyncio.create_task(app_state.job_runner.watch_jobs())
        while sum(r.kind == "LIST job" for r in fault_proxy.requests) < 30:
            await asyncio.sleep(0.01)  # the interval of a poll
        watch_task.cancel()
        await asyncio.gather(watch_task, return_exceptions=True)

    kinds = count(fault_proxy, lambda: asyncio.run(run_idle()))
    num_start_requests = sum(kinds.values()) - kinds["LIST job"]
    assert num_start_requests <= 12, kinds
    # One a look, and once a minute three for jobs that ended long ago, or are an earlier version's.
    first_kinds = [r.kind for r in fault_proxy.requests[-20:]]
    assert first_kinds == ["LIST job"] * 20
    assert looks_a_minute + 3 * 60 / image_job_runner._FORGET_INTERVAL_S <= 10


def test_runs_without_entries_get_them_at_four_requests_each(
    store: Store, fault_proxy: FaultProxy
) -> None:
    for k in range(20):
        commit(store, f"run-{k}", subject=f"dog-{k % 10}", created_at=k)
    catalog = SubjectVersionCatalog(store)
    first = count(fault_proxy, lambda: rebuild_catalog(catalog))
    assert len(catalog.list_subjects()) == 10
    assert [ref.run_id for ref in catalog.read("dog-3").versions] == ["run-13", "run-3"]
    again = count(fault_proxy, lambda: rebuild_catalog(catalog))
    assert sum(again.values()) <= 4 * 20 + 5, again
    assert sum(first.values()) <= 10 * 20 + 5, first
    subjects = SubjectCatalog(ServeConfig.model_validate({"storage": {"uri": store.uri}}))
    resolved = asyncio.run(subjects.resolve_served_subject("dog-3", lambda _: True))
    assert resolved.artifact.folder == "runs/run-13/bundle"
