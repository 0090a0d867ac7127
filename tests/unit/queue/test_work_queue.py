import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkMark, WorkRecord, ended_mark_name
from dreambooth_ray.storage.store import Store
from tests.unit.queue.queued import LEASE_S, add, claim, drain


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def queue(store: Store) -> WorkQueue:
    return WorkQueue(store)


def test_work_is_done_in_the_order_of_priority_and_arrival(queue: WorkQueue) -> None:
    add(queue, "late", at=9_000)
    add(queue, "early", at=1)
    add(queue, "urgent", priority=5, at=20_000)
    add(queue, "unhurried", priority=-5)
    assert [m.id for m in queue.list_marks("waiting")] == ["urgent", "early", "late", "unhurried"]
    assert drain(queue) == ["urgent", "early", "late", "unhurried"]
    assert [ended.id for ended in queue.list_ended()] == ["urgent", "early", "late", "unhurried"]
    assert queue.claim_next(LEASE_S) is None


def test_the_owner_of_whom_least_runs_is_next(queue: WorkQueue) -> None:
    for number in range(3):
        add(queue, f"ann-{number}", "ann", at=number)
    add(queue, "bob-0", "bob/with a slash", at=50)
    works = [claim(queue) for _ in range(4)]
    assert [work.record.id for work in works] == ["ann-0", "bob-0", "ann-1", "ann-2"]
    assert works[1].record.payload == "of bob-0"
    assert {mark.owner for mark in queue.list_marks("running")} == {"ann", "bob/with a slash"}


def test_an_owner_has_no_more_than_the_budget_at_once(queue: WorkQueue) -> None:
    add(queue, "one")
    add(queue, "two", at=5)
    add(queue, "other", "bob")
    first = claim(queue)
    assert first.record.id == "one"
    other = queue.claim_next(LEASE_S, 1)
    assert other is not None
    assert other.record.owner == "bob"
    assert queue.claim_next(LEASE_S, 1) is None
    queue.finish(first, "done")
    assert queue.claim_next(LEASE_S, 1) is not None


def test_an_id_is_there_once(queue: WorkQueue) -> None:
    assert not queue.has_work("one")
    add(queue, "one")
    assert queue.has_work("one")
    with pytest.raises(ConfigError, match=r"'one' is in the queue .* with other settings"):
        add(queue, "one", "bob")
    # That very work may be added again, by who does not know whether it was: it is there once.
    record = WorkRecord(id="one", owner="ann", payload="of one", created_ms=5)
    assert not queue.add(record)
    assert drain(queue) == ["one"]
    assert not queue.add(record)
    assert drain(queue) == []


def test_cancelling_ends_what_waits_and_asks_who_runs(queue: WorkQueue) -> None:
    add(queue, "waits", at=5)
    add(queue, "runs")
    running = claim(queue)
    assert running.record.id == "runs"
    assert queue.cancel("waits") == "cancelled"
    assert queue.cancel("runs") == "asked"
    assert queue.list_cancelled() == ["runs"]
    queue.finish(running, "stopped", "as it was asked to")
    assert not queue.list_cancelled()
    assert queue.cancel("runs") == queue.cancel("waits") == "over"
    assert queue.claim_next(LEASE_S) is None
    ended = {entry.id: entry for entry in queue.list_ended()}
    assert {entry.state for entry in ended.values()} == {"cancelled", "stopped"}
    assert queue.read_end_note(ended["runs"]) == "as it was asked to"
    with pytest.raises(ConfigError, match="no work 'other'"):
        queue.cancel("other")


def test_work_past_its_deadline_is_not_begun(queue: WorkQueue) -> None:
    for work_id, deadline_s in (("late", time.time() - 1), ("in-time", time.time() + 3600)):
        queue.add(
            WorkRecord(id=work_id, owner="ann", payload="", created_ms=1, deadline_s=deadline_s)
        )
    assert claim(queue).record.id == "in-time"
    assert queue.claim_next(LEASE_S) is None
    (ended,) = queue.list_ended()
    assert (ended.id, ended.state) == ("late", "expired")
    assert "deadline" in queue.read_end_note(ended)


def test_what_is_given_back_keeps_its_turn_and_failures_alone_are_counted(
    queue: WorkQueue,
) -> None:
    add(queue, "first")
    add(queue, "second", at=9)
    for has_failed, num_failures in ((False, 0), (True, 0), (False, 1), (True, 1), (False, 2)):
        work = claim(queue)
        assert (work.record.id, work.num_failures) == ("first", num_failures)
        assert queue.renew(work)
        assert queue.give_back(work, has_failed=has_failed)
    assert drain(queue) == ["first", "second"]


def test_work_behind_much_that_expired_is_found(queue: WorkQueue) -> None:
    for number in range(40):
        queue.add(
            WorkRecord(id=f"late-{number}", owner="ann", payload="", created_ms=1, deadline_s=5)
        )
    add(queue, "in-time")
    assert claim(queue).record.id == "in-time"
    assert {ended.state for ended in queue.list_ended()} == {"expired"}


def test_what_a_newer_version_added_is_left_to_it(queue: WorkQueue, store: Store) -> None:
    record = WorkRecord(id="one", owner="ann", payload="", created_ms=1, format=2)
    queue.add(record)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"newer version .format 2, this one reads 1"):
            queue.claim_next(LEASE_S)
    assert [mark.id for mark in queue.list_marks("waiting")] == ["one"]
    store.write("waiting/ann/other", b"")
    with pytest.raises(ConfigError, match="'ann/other' in the queue is no mark of this version"):
        queue.list_marks("waiting")


@pytest.mark.parametrize("owner", ["", "x" * 201, "\N{SNOWMAN}" * 40])
def test_owners_that_are_no_folder_are_refused(owner: str) -> None:
    with pytest.raises(ValueError, match="is no name of a folder"):
        WorkRecord(id="one", owner=owner, payload="", created_ms=1)


@pytest.mark.parametrize("owner", [".", "..", "a/../b", "%2E", "ann smith"])
def test_an_owners_name_leads_nowhere_else(queue: WorkQueue, store: Store, owner: str) -> None:
    add(queue, "one", owner)
    assert sorted(store.names()) == ["records", "waiting"]
    assert claim(queue).record.owner == owner


def test_pages_follow_each_other(queue: WorkQueue) -> None:
    for number in range(7):
        add(queue, f"w{number}", at=number * 700)
    pages, after = [], ""
    while page := queue.list_marks("waiting", after, 3):
        pages.append([mark.id for mark in page])
        after = page[-1].name
    assert pages == [["w0", "w1", "w2"], ["w3", "w4", "w5"], ["w6"]]
    drain(queue)
    first = queue.list_ended("", 4)
    assert len(first) == 4
    assert len(queue.list_ended(ended_mark_name(first[-1]), 4)) == 3


@given(
    st.text(min_size=1, max_size=12),
    st.integers(-99_999, 99_999),
    st.integers(0, 10**14),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
)
def test_a_mark_says_all_of_a_turn(
    owner: str, priority: int, created_ms: int, work_id: str
) -> None:
    mark = WorkMark(work_id, owner, priority, created_ms)
    assert WorkMark.parse(mark.name) == mark
    assert mark.name.count("/") == 3


def test_what_waits_is_counted_as_far_as_it_may_be_begun(queue: WorkQueue) -> None:
    for number in range(5):
        add(queue, f"ann-{number}", "ann", at=number)
    add(queue, "bob-0", "bob")
    assert [queue.count_waiting(limit) for limit in (3, 100)] == [3, 6]
    running = [claim(queue) for _ in range(2)]
    assert {work.record.owner for work in running} == {"ann", "bob"}
    assert queue.count_waiting(100) == 4
    # One of ann's runs, so with a budget of two one more may.
    assert [queue.count_waiting(100, budget) for budget in (1, 2, 9)] == [0, 1, 4]
    assert queue.count_waiting(2, 9) == 2
