"""Work of several processes, some of which die or freeze."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_ray.errors import StorageError
from dreambooth_ray.queue import work_queue
from dreambooth_ray.queue.claims import Claims
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.storage.holder import make_process_holder
from dreambooth_ray.storage.lease import Lease
from dreambooth_ray.storage.store import Store
from tests.unit.queue.queued import (
    LEASE_S,
    Clock,
    add,
    claim,
    claim_none,
    drain,
    make_silent_on_another_host,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def queue(store: Store) -> WorkQueue:
    return WorkQueue(store)


def test_adding_that_was_cut_off_is_finished_by_the_next(queue: WorkQueue, store: Store) -> None:
    add(queue, "one")
    (mark,) = queue.list_marks("waiting")
    store.remove_file(f"waiting/{mark.name}")
    assert claim_none(queue)
    record = WorkRecord(id="one", owner="ann", payload="of one", created_ms=5)
    assert not WorkQueue(store).add(record)
    assert drain(queue) == ["one"]


def test_adding_that_is_cut_off_again_and_again_is_finished_once(
    queue: WorkQueue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(queue, "one")
    (mark,) = queue.list_marks("waiting")
    store.remove_file(f"waiting/{mark.name}")
    record = WorkRecord(id="one", owner="ann", payload="of one", created_ms=5)

    def cut_off(*_: object) -> None:
        raise StorageError("gone")

    for written in (False, True, False):
        adder = WorkQueue(store)
        with monkeypatch.context() as patch, pytest.raises(StorageError):
            if written:  # the mark is there, and its claim is not given back
                patch.setattr(Lease, "release", cut_off)
            else:
                patch.setattr(adder, "_write_waiting", cut_off)
            adder.add(record)
    assert not WorkQueue(store).add(record)
    assert drain(queue) == ["one"]
    assert not WorkQueue(store).add(record)
    assert drain(queue) == []


def test_work_without_a_mark_is_cancelled_for_good(queue: WorkQueue, store: Store) -> None:
    add(queue, "one")
    (mark,) = queue.list_marks("waiting")
    store.remove_file(f"waiting/{mark.name}")
    assert queue.cancel("one") == "cancelled"
    add(queue, "one")
    assert drain(queue) == []
    assert [(work.id, work.state) for work in queue.list_ended()] == [("one", "cancelled")]


def test_of_many_processes_each_piece_of_work_has_one(store: Store) -> None:
    adder = WorkQueue(store)
    for number in range(24):
        add(adder, f"w{number}", f"owner-{number % 3}", at=number * 400)

    def work_off(queue: WorkQueue) -> list[str]:
        return drain(queue)

    with ThreadPoolExecutor(6) as pool:
        done = [w for ids in pool.map(work_off, [WorkQueue(store) for _ in range(6)]) for w in ids]
    # One of several claims may miss what another holds for a moment.
    done += drain(adder)
    assert Counter(done) == Counter({f"w{number}": 1 for number in range(24)})
    assert not adder.list_marks("running")


def test_what_a_dead_process_had_claimed_waits_again(store: Store, queue: WorkQueue) -> None:
    add(queue, "one")
    add(queue, "two", at=3)
    claim(queue)
    claim(queue)
    # The holder's process id is another's by now.
    dead = replace(make_process_holder(LEASE_S), started=1.0)
    store.write("claims/one/lease-0001.json", dead.as_json())
    other = WorkQueue(store)
    assert other.claim_next(LEASE_S) is None
    assert other.requeue_abandoned_work(LEASE_S) == ["one"]
    again = claim(other)
    assert again.record.id == "one"
    assert again.num_failures == 0
    assert [mark.id for mark in other.list_marks("running")] == ["one", "two"]
    # Of what it holds itself nothing is to be heard.
    assert other.requeue_abandoned_work(LEASE_S) == []
    assert other.num_silent == 1
    assert queue.requeue_abandoned_work(LEASE_S) == []
    assert queue.num_silent == 0


def test_a_mark_that_a_death_has_left_behind_is_passed_over(store: Store, queue: WorkQueue) -> None:
    """Between the end's mark and the removal of the waiting one nothing is held back."""
    add(queue, "one")
    listed = WorkQueue(store)
    (mark,) = listed.list_marks("waiting")
    drain(queue)
    assert listed.claim(mark, LEASE_S) is None
    assert [ended.state for ended in queue.list_ended()] == ["done"]


@pytest.mark.parametrize("end", ["finish", "give back"])
def test_who_was_followed_changes_nothing_any_more(store: Store, end: str) -> None:
    """Frozen for longer than its lease, it wakes up when another does its work."""
    clock = Clock()
    frozen, other = WorkQueue(store, clock), WorkQueue(store, clock)
    add(frozen, "one")
    work = claim(frozen)
    make_silent_on_another_host(store, "one")
    assert other.requeue_abandoned_work(LEASE_S) == []
    assert other.num_silent == 1
    clock.now_s = LEASE_S
    assert other.requeue_abandoned_work(LEASE_S) == ["one"]
    again = claim(other)
    if end == "finish":
        assert not frozen.finish(work, "failed", "storage was away")
    else:
        assert not frozen.give_back(work, has_failed=True)
    assert [mark.id for mark in other.list_marks("running")] == ["one"]
    assert other.list_marks("waiting") == other.list_ended() == []
    assert other.finish(again, "done")
    assert claim_none(frozen)
    assert [ended.state for ended in other.list_ended()] == ["done"]


def test_of_many_claims_some_are_looked_at_each_time(
    store: Store, queue: WorkQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_queue, "_WATCHED_CLAIMS", 3)
    for number in range(7):
        add(queue, f"w{number}", at=number)
        claim(queue)
        make_silent_on_another_host(store, f"w{number}")
    clock = Clock()
    other = WorkQueue(store, clock)
    num_looked_at = []
    for _ in range(3):
        assert other.requeue_abandoned_work(LEASE_S) == []
        num_looked_at.append(other.num_silent)
    assert num_looked_at == [3, 3, 1]
    clock.now_s = LEASE_S
    assert [len(other.requeue_abandoned_work(LEASE_S)) for _ in range(3)] == [3, 3, 1]


def test_who_is_about_to_have_it_is_asked_as_well(queue: WorkQueue, store: Store) -> None:
    """Between its lease and its mark it is not over."""
    add(queue, "one")
    assert Claims(store.sub("claims")).claim("one", LEASE_S) is not None
    assert queue.cancel("one") == "asked"
    assert queue.list_cancelled() == ["one"]


class DeathError(BaseException):
    """The end of a process."""


def die_after(num_changes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on: before a change of storage more than so many."""
    counter = itertools.count()
    for name in ("write", "create", "remove_file"):
        change = getattr(Store, name)

        def count(
            store: Store, *arguments: object, change: Callable[..., object] = change
        ) -> object:
            if next(counter) >= num_changes:
                raise DeathError
            return change(store, *arguments)

        monkeypatch.setattr(Store, name, count)


def bury(store: Store) -> None:
    """What this process holds was held by one that has ended."""
    dead = replace(make_process_holder(LEASE_S), started=1.0)
    for name in store.files_after("claims"):
        if not json.loads(store.read(f"claims/{name}")).get("released"):
            store.write(f"claims/{name}", dead.as_json())


def run_through(queue: WorkQueue, end: str) -> None:
    record = WorkRecord(id="one", owner="ann", payload="of one", created_ms=5)
    queue.add(record)
    if end == "cancel":
        queue.cancel("one")
        return
    work = claim(queue)
    if end == "finish":
        queue.finish(work, "failed", "once")
    else:
        queue.give_back(work, has_failed=end == "give back a failure")


@pytest.mark.parametrize("end", ["finish", "give back", "give back a failure", "cancel"])
def test_a_death_between_any_two_changes_loses_no_work(store: Store, end: str) -> None:
    num_changes, has_died = 0, True
    while has_died:
        here = store.sub(f"died-after-{num_changes}")
        with pytest.MonkeyPatch.context() as monkeypatch:
            die_after(num_changes, monkeypatch)
            try:
                run_through(WorkQueue(here), end)
                has_died = False
            except DeathError:
                num_changes += 1
        bury(here)
        other = WorkQueue(here)
        # Whoever was adding it adds it again.
        other.add(WorkRecord(id="one", owner="ann", payload="of one", created_ms=9))
        other.requeue_abandoned_work(LEASE_S)
        drain(other)
        ended = [entry.state for entry in other.list_ended()]
        assert set(ended) <= {"done", "failed", "cancelled"}, num_changes
        # Once its end is written it may be done again; the run it is says that it is done.
        assert 1 <= len(ended) <= 2, num_changes
        assert not other.list_marks("running"), num_changes
        assert not other.list_marks("waiting"), num_changes
    assert num_changes > 4
