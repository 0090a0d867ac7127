"""Workers of several processes, played here, take subjects from a queue in storage."""

import threading
from pathlib import Path

import pytest

from cluster.fleet_plan import FleetEntry, FleetSubject, run_queue
from cluster.stored_queue import StoredQueue
from dreambooth_ray.errors import DataError
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.storage.store import Store


def open_entry(record: WorkRecord) -> FleetEntry:
    if record.payload == "unreadable":
        raise DataError("its photograph is damaged")
    return FleetEntry(
        FleetSubject(id=record.id, photos="p", class_noun="robot", owner=record.owner)
    )


class Stored:
    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder))
        self.lines: list[str] = []
        self.stopped = threading.Event()

    def add(self, name: str, owner: str = "ann", payload: str = "") -> None:
        record = WorkRecord(id=name, owner=owner, payload=payload, created_ms=1_000)
        WorkQueue(self.store).add(record)

    def open(self, retries: int = 0, most_at_once: int = 9) -> StoredQueue:
        return StoredQueue(
            WorkQueue(self.store), open_entry, lambda _: self.stopped.set(), self.lines.append,
            lease_s=60.0, retries=retries, interval_s=0.02, most_at_once=most_at_once,
        )  # fmt: skip

    @property
    def ended(self) -> dict[str, str]:
        return {ended.id: ended.state for ended in WorkQueue(self.store).list_ended()}


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


def work_off(queue: StoredQueue, fails: frozenset[str] = frozenset()) -> None:
    run_queue(
        queue, lambda e: e.subject.id, lambda handles: next(iter(handles)),
        lambda handle: "broken" if handle in fails else None, lambda _: None,
    )  # fmt: skip


def test_all_that_waits_is_done_and_what_can_t_be_is_said(stored: Stored) -> None:
    for name in ("a", "b", "c"):
        stored.add(name)
    stored.add("bad", "bob", "unreadable")
    with stored.open(retries=1) as queue:
        first = queue.peek()
        assert first is not None
        assert queue.peek() is first
        work_off(queue, frozenset({"b"}))
        assert queue.is_over
    assert stored.ended == {"a": "done", "b": "failed", "c": "done", "bad": "failed"}
    tries = {entry.subject.id: entry.tries for entry in queue.entries}
    assert tries == {"a": 1, "b": 2, "c": 1}
    assert any("damaged" in line for line in stored.lines)


def test_no_more_is_claimed_than_can_be_done(stored: Stored) -> None:
    for name in ("a", "b", "c"):
        stored.add(name)
    with stored.open(most_at_once=2) as queue, stored.open() as other:
        assert [queue.next() is None for _ in range(3)] == [False, False, True]
        last = other.next()
        assert last is not None
        assert not other.is_over
        other.stop(last, "as it was asked to", 1.0)
    # What a queue that is left has begun waits again.
    assert stored.ended == {last.subject.id: "stopped"}
    assert len(WorkQueue(stored.store).list_marks("waiting")) == 2


def test_a_cancelled_subject_is_asked_to_stop(stored: Stored) -> None:
    stored.add("a")
    with stored.open() as queue:
        entry = queue.next()
        assert entry is not None
        assert WorkQueue(stored.store).cancel("a") == "asked"
        assert stored.stopped.wait(30)
        queue.stop(entry, "at step 3", 1.0)
    assert stored.ended == {"a": "stopped"}


def test_what_no_batch_can_have_ends_with_its_reason(stored: Stored) -> None:
    stored.add("a")
    with stored.open() as queue:
        entry = queue.next()
        assert entry is not None
        queue.withdraw(entry, 1.0)
        assert queue.next() is None
    assert stored.ended == {"a": "failed"}
    assert "by itself" in entry.note


def test_what_a_killed_process_was_doing_is_done_by_the_next(stored: Stored) -> None:
    stored.add("a")
    killed = WorkQueue(stored.store).claim_next(60.0)
    assert killed is not None
    # As that of a process that has ended.
    killed.lease.release()
    with stored.open() as queue:
        work_off(queue)
    assert stored.ended == {"a": "done"}
    assert queue.entries[0].tries == 3
