"""Workers of several processes, played here, take subjects from a queue in storage."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.fleet_queue import TryEnd, run_queue
from cluster.stored_queue import StoredQueue
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import DataError, StorageError
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.storage.store import Store

RUN = PreparedRun(
    parse_config("run_id: one\nsubject: {photos: p, class_noun: robot}", "x", []), Path()
)


def prepare(record: WorkRecord) -> PreparedRun:
    if record.payload == "unreadable":
        raise DataError("its photograph is damaged")
    if record.payload == "away":
        raise StorageError("storage is away")
    return RUN


class Stored:
    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder))
        self.lines: list[str] = []
        self.stopped = threading.Event()
        self.prepare = prepare

    def add(self, name: str, owner: str = "ann", payload: str = "") -> None:
        record = WorkRecord(id=name, owner=owner, payload=payload, created_ms=1_000)
        WorkQueue(self.store).add(record)

    def open(
        self,
        retries: int = 0,
        most_at_once: int = 9,
        most_of_owner: int | None = None,
        must_yield: Callable[[], bool] = lambda: False,
        lease_s: float = 60.0,
    ) -> StoredQueue:
        return StoredQueue(
            WorkQueue(self.store), self.prepare, lambda _: self.stopped.set(), self.lines.append,
            lease_s=lease_s, retries=retries, interval_s=0.02, most_at_once=most_at_once,
            most_of_owner=most_of_owner, must_yield=must_yield,
        )  # fmt: skip

    @property
    def ended(self) -> dict[str, str]:
        return {ended.id: ended.state for ended in WorkQueue(self.store).list_ended()}


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


def work_off(queue: StoredQueue, fails: frozenset[str] = frozenset()) -> None:
    run_queue(
        queue, lambda e: e.id, lambda handles: next(iter(handles)),
        lambda handle: TryEnd("failed", "broken") if handle in fails else TryEnd("done"),
        lambda _: None,
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
    tries = {entry.id: entry.tries for entry in queue.entries}
    assert tries == {"a": 1, "b": 2, "c": 1, "bad": 1}
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
    assert stored.ended == {last.id: "stopped"}
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
    # It has not failed once.
    assert queue.entries[0].tries == 1


def test_a_claim_is_renewed_while_its_run_is_prepared(stored: Stored) -> None:
    """As a model is downloaded: for longer than a lease."""
    stored.add("a")
    queue = WorkQueue(stored.store)

    def prepare_slowly(record: WorkRecord) -> PreparedRun:
        files = queue._claims.lease_files(record.id, 60.0)
        deadline_s = time.monotonic() + 30
        while (holder := files.read_newest().holder) is None or holder.num_renewals < 3:
            assert time.monotonic() < deadline_s, "the claim is not renewed"
            stored.stopped.wait(0.01)
        return RUN

    stored.prepare = prepare_slowly
    with stored.open(lease_s=0.6) as stored_queue:
        work_off(stored_queue)
    assert stored.ended == {"a": "done"}


def test_what_was_lost_and_given_back_is_not_begun_twice(stored: Stored) -> None:
    stored.add("a")
    with stored.open() as queue:
        entry = queue.next()
        assert entry is not None
        # Another process has taken it, could not open its run, which is in use, and gave it back.
        queue._held["a"].work.lease.release()
        other = WorkQueue(stored.store)
        assert other.requeue_abandoned_work(60.0)
        work = other.claim_next(60.0)
        assert work is not None
        assert other.give_back(work, has_failed=True)
        assert queue.next() is None
        assert list(queue._held) == ["a"]
        assert entry.tries == 2
        queue.finish(entry, None, 1.0)
    assert stored.ended == {"a": "done"}


def test_a_lost_claim_is_said_once(stored: Stored) -> None:
    stored.add("a")
    with stored.open() as queue:
        entry = queue.next()
        assert entry is not None
        stored.store.remove("claims/a")
        queue._renew_all_claims()
        queue._renew_all_claims()
        assert len([line for line in stored.lines if "taken it over" in line]) == 1


def test_storage_that_is_away_is_tried_again_and_no_mistake_of_the_subject(stored: Stored) -> None:
    stored.add("a", payload="away")
    with stored.open(retries=2) as queue:
        work_off(queue)
    assert stored.ended == {"a": "failed"}
    assert [(entry.tries, entry.note) for entry in queue.entries] == [(3, "storage is away")]


def test_lost_workers_are_no_failures(stored: Stored) -> None:
    stored.add("a")
    with stored.open(retries=1) as queue:
        for _ in range(4):
            entry = queue.next()
            assert entry is not None
            queue.put_back(entry, 1.0)
        work_off(queue, frozenset({"a"}))
        # One subject has one line, with the time of all its tries.
        (entry,) = queue.entries
    assert (entry.state, entry.tries) == ("failed", 2)
    assert entry.seconds >= 4.0


def test_an_owner_with_a_budget_has_all_trained_by_one_process(stored: Stored) -> None:
    for name in ("a", "b", "c"):
        stored.add(name)
    with stored.open(most_of_owner=1) as queue:
        work_off(queue)
    assert stored.ended == {"a": "done", "b": "done", "c": "done"}


def test_who_was_followed_says_so(stored: Stored) -> None:
    stored.add("a")
    with stored.open() as queue:
        entry = queue.next()
        assert entry is not None
        queue._held["a"].work.lease._renewed_at_s = -1e9
        stored.store.write("claims/a/lease-0002.json", b"{}")
        queue.finish(entry, None, 1.0)
    assert stored.ended == {}
    assert (entry.state, queue.is_over) == ("waiting", False)
    assert "taken it over" in entry.note


def test_what_waits_is_asked_for_once_in_a_while(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        stored.add(name)
    counts = []
    count_waiting = WorkQueue.count_waiting
    monkeypatch.setattr(
        WorkQueue, "count_waiting", lambda *words: counts.append(1) or count_waiting(*words)
    )
    with stored.open(most_at_once=2) as queue:
        monkeypatch.setattr(queue, "_interval_s", 1e9)
        assert queue.count_waiting(9) == 3
        assert queue.next() is not None
        stored.add("d")
        # What was claimed here is known; what was added elsewhere is seen at the next look.
        assert [queue.count_waiting(9) for _ in range(3)] == [2, 2, 2]
        assert len(counts) == 1
        monkeypatch.setattr(queue, "_interval_s", 0.0)
        assert queue.count_waiting(9) == 3


def test_whose_turn_is_over_begins_nothing_more_and_ends(stored: Stored) -> None:
    for name in ("a", "b"):
        stored.add(name)
    is_over = False
    with stored.open(must_yield=lambda: is_over) as queue:
        entry = queue.next()
        assert entry is not None
        is_over = True
        assert queue.next() is None
        assert not queue.is_over
        queue.finish(entry, None, 1.0)
        assert queue.next() is None
        assert queue.is_over
    assert stored.ended == {"a": "done"}
    assert len(WorkQueue(stored.store).list_marks("waiting")) == 1
