import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_ray.queue import queue_garbage
from dreambooth_ray.queue.queue_garbage import (
    ENDED_S,
    EndedGarbage,
    find_ended_garbage,
    remove_ended_garbage,
)
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import work_record_path
from dreambooth_ray.storage.file_listing import list_files
from dreambooth_ray.storage.store import Store
from tests.unit.queue.queued import LEASE_S, add, claim, drain

NAME = "queue/fleet/group"


@pytest.fixture
def storage(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def queue(storage: Store) -> WorkQueue:
    return WorkQueue(storage.sub(NAME))


def find(storage: Store, later_s: float = ENDED_S + 60, age_s: float = 0.0) -> list[EndedGarbage]:
    """As of so much later. age_s: that files must have had by then"""
    now_s = time.time() + later_s
    return list(find_ended_garbage(storage, now_s - age_s, now_s))


def test_what_ended_long_ago_goes_and_leaves_nothing(storage: Store, queue: WorkQueue) -> None:
    for name in ("a", "b"):
        add(queue, name)
    work = claim(queue)
    queue.give_back(work, has_failed=True)
    assert drain(queue) == ["a", "b"]
    assert find(storage, ENDED_S - 60) == []
    assert find(storage, age_s=2 * ENDED_S) == []
    (item,) = find(storage)
    assert (item.name, item.reason) == (NAME, "2 pieces of work that ended a week ago")
    assert item.size_bytes > 0
    assert len(queue.list_ended()) == 2  # nothing goes before it is asked for
    assert remove_ended_garbage(storage, item)
    assert list_files(storage, "queue") == []
    assert find(storage) == []
    # Its id may be added again.
    add(queue, "a")
    assert drain(queue) == ["a"]


def test_what_waits_or_runs_stays_though_it_ended_before(storage: Store, queue: WorkQueue) -> None:
    """As work does whose process died between the marks of its end."""
    for name in ("waits", "runs", "over"):
        add(queue, name, owner=name)
        work = claim(queue)
        queue._write_end(name, "done", "")
        if name == "waits":
            queue.give_back(work)
        if name == "over":
            queue.finish(work, "done")
    (item,) = find(storage)
    assert {end.id for ends in item.ended for end in ends} == {"over"}
    assert len(item.ended[0]) in (1, 2)  # both ends may be of one moment
    assert remove_ended_garbage(storage, item)
    assert {ended.id for ended in queue.list_ended()} == {"waits", "runs"}
    assert [mark.id for mark in queue.list_marks("waiting")] == ["waits"]


def test_what_was_taken_up_since_it_was_found_stays(storage: Store, queue: WorkQueue) -> None:
    for name in ("again", "held"):
        add(queue, name)
    drain(queue)
    (item,) = find(storage)
    # As if somebody had put one back, and looked at the other.
    queue._write_waiting(queue_garbage.WorkMark.of(queue.read("again")))
    assert queue._claims.claim("held", LEASE_S) is not None
    assert not remove_ended_garbage(storage, item)
    assert drain(queue) == ["again"]
    assert queue.has_work("held")


@pytest.mark.parametrize(("age_s", "is_removed"), [(2 * 3600.0, True), (60.0, False)])
def test_a_runner_that_died_before_it_gave_its_lease_back_is_followed(
    storage: Store, queue: WorkQueue, age_s: float, is_removed: bool
) -> None:
    add(queue, "a")
    drain(queue)
    lease = queue._claims.claim("a", LEASE_S)
    assert lease is not None
    path = storage.sub(NAME).local_path(f"claims/a/lease-{lease.number:04d}.json")
    os.utime(path, (time.time() - age_s,) * 2)
    (item,) = find(storage)
    assert remove_ended_garbage(storage, item) == is_removed
    assert (list_files(storage, "queue") == []) == is_removed


@pytest.mark.parametrize("num_removed", range(8))
def test_a_removal_that_was_cut_off_is_finished_by_the_next(
    storage: Store, queue: WorkQueue, monkeypatch: pytest.MonkeyPatch, num_removed: int
) -> None:
    add(queue, "a")
    drain(queue)
    (item,) = find(storage)
    budget = num_removed

    def remove_some(method: str) -> None:
        whole = getattr(Store, method)

        def remove(store: Store, name: str) -> None:
            nonlocal budget
            if budget == 0:
                raise OSError("killed")
            budget -= 1
            whole(store, name)

        monkeypatch.setattr(Store, method, remove)

    with monkeypatch.context() as patch:
        monkeypatch = patch
        for method in ("remove_file", "remove"):
            remove_some(method)
        with suppress(OSError):
            remove_ended_garbage(storage, item)
    # Its holder is known to be dead by now.
    for file in list_files(storage.sub(NAME), "claims"):
        storage.sub(NAME).write(f"claims/{file.name}", b'{"released": true}')
    for item in find(storage, 2 * ENDED_S):
        assert remove_ended_garbage(storage, item)
    assert list_files(storage, "queue") == []


def test_queues_of_a_newer_version_stay(storage: Store, queue: WorkQueue) -> None:
    add(queue, "a")
    drain(queue)
    storage.write(f"{NAME}/waiting/of-another-kind", b"")
    assert find(storage) == []


def test_a_record_of_a_newer_version_stays(storage: Store, queue: WorkQueue) -> None:
    add(queue, "a")
    drain(queue)
    (item,) = find(storage)
    storage.sub(NAME).write(work_record_path("a"), b'{"format": 9}')
    assert not remove_ended_garbage(storage, replace(item))
    assert queue.has_work("a")
