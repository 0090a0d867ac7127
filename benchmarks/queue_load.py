"""What a queue of many pieces of work costs: to add one, to list a page, to claim the next.

    python -m benchmarks.queue_load [--count 100000] [--storage FOLDER_OR_URI]

The queue is filled by writing the files that `WorkQueue.add` writes, without waiting for the disk
each time. Then each call is timed; on an object store compare by requests, not by time.
"""

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.conditions import read_conditions
from benchmarks.measure import compute_quantiles
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkMark, WorkRecord
from dreambooth_ray.storage.store import Store

NUM_OWNERS, ADDED_A_SECOND, CALLS = 100, 500, 30


def make_work_record(number: int) -> WorkRecord:
    """Owners take turns in adding, so many a second."""
    created_ms = 1_700_000_000_000 + number * 1000 // ADDED_A_SECOND
    owner = f"owner-{number % NUM_OWNERS}"
    return WorkRecord(id=f"work-{number}", owner=owner, payload="{}", created_ms=created_ms)


def fill_queue(store: Store, count: int) -> None:
    """So many that wait."""
    work_queue = WorkQueue(store)

    def add_record(number: int) -> None:
        work_record = make_work_record(number)
        if not store.is_local:
            work_queue.add(work_record)
            return
        waiting_mark_file = store.local_path(f"waiting/{WorkMark.of(work_record).name}")
        waiting_mark_file.parent.mkdir(parents=True, exist_ok=True)
        waiting_mark_file.touch()

    with ThreadPoolExecutor(1 if store.is_local else 32) as thread_pool:
        list(thread_pool.map(add_record, range(count)))


def time_queue_calls(store: Store, count: int) -> dict[str, Any]:
    """Milliseconds of each call, in a queue of `count`."""
    fill_queue(store, count)
    work_queue, new_record_numbers = WorkQueue(store), iter(range(count, count + 10_000))
    # Their records alone are needed: those that are claimed first.
    timed_calls: dict[str, Callable[[], object]] = {
        "add": lambda: work_queue.add(make_work_record(next(new_record_numbers))),
        "list a page": lambda: work_queue.list_marks("waiting", "", 50),
        "list a later page": lambda: work_queue.list_marks(
            "waiting", WorkMark.of(make_work_record(count // 2)).name, 50
        ),
        "claim the next": lambda: work_queue.claim_next(60.0),
    }
    record: dict[str, Any] = {"waiting": count, "owners": NUM_OWNERS}
    if store.is_local:
        _add_first_work_records(store, count)
    for call_name, timed_call in timed_calls.items():
        times_ms = []
        for _ in range(CALLS):
            start_s = time.perf_counter()
            call_result = timed_call()
            times_ms.append(1000 * (time.perf_counter() - start_s))
            assert call_name == "add" or call_result
        record[call_name] = compute_quantiles(times_ms)
    return record | {"unit": "ms", "conditions": read_conditions()}


def _add_first_work_records(store: Store, count: int) -> None:
    work_queue = WorkQueue(store)
    for record_number in range(min(count, 2 * NUM_OWNERS)):
        work_record = make_work_record(record_number)
        work_queue.add(work_record)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--storage")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        store = Store(arguments.storage or str(Path(temp_folder) / "out")).sub(
            f"queue-{uuid.uuid4().hex}"
        )
        print(json.dumps(time_queue_calls(store, arguments.count), indent=1))
        store.remove("")


if __name__ == "__main__":
    main()
