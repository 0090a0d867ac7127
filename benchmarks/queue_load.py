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


def make_record(number: int) -> WorkRecord:
    """Owners take turns in adding, so many a second."""
    created_ms = 1_700_000_000_000 + number * 1000 // ADDED_A_SECOND
    owner = f"owner-{number % NUM_OWNERS}"
    return WorkRecord(id=f"work-{number}", owner=owner, payload="{}", created_ms=created_ms)


def fill(store: Store, count: int) -> None:
    """So many that wait."""
    queue = WorkQueue(store)

    def add_record(number: int) -> None:
        record = make_record(number)
        if not store.is_local:
            queue.add(record)
            return
        mark_file = store.local_path(f"waiting/{WorkMark.of(record).name}")
        mark_file.parent.mkdir(parents=True, exist_ok=True)
        mark_file.touch()

    with ThreadPoolExecutor(1 if store.is_local else 32) as thread_pool:
        list(thread_pool.map(add_record, range(count)))


def measure(store: Store, count: int) -> dict[str, Any]:
    """Milliseconds of each call, in a queue of `count`."""
    fill(store, count)
    queue, record_numbers = WorkQueue(store), iter(range(count, count + 10_000))
    # Their records alone are needed: those that are claimed first.
    timed_calls: dict[str, Callable[[], object]] = {
        "add": lambda: queue.add(make_record(next(record_numbers))),
        "list a page": lambda: queue.list_marks("waiting", "", 50),
        "list a later page": lambda: queue.list_marks(
            "waiting", WorkMark.of(make_record(count // 2)).name, 50
        ),
        "claim the next": lambda: queue.claim_next(60.0),
    }
    record: dict[str, Any] = {"waiting": count, "owners": NUM_OWNERS}
    if store.is_local:
        _write_first_records(store, count)
    for call_name, timed_call in timed_calls.items():
        times_ms = []
        for _ in range(CALLS):
            start_s = time.perf_counter()
            call_result = timed_call()
            times_ms.append(1000 * (time.perf_counter() - start_s))
            assert call_name == "add" or call_result
        record[call_name] = compute_quantiles(times_ms)
    return record | {"unit": "ms", "conditions": read_conditions()}


def _write_first_records(store: Store, count: int) -> None:
    queue = WorkQueue(store)
    for number in range(min(count, 2 * NUM_OWNERS)):
        record = make_record(number)
        queue.add(record)


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
        print(json.dumps(measure(store, arguments.count), indent=1))
        store.remove("")


if __name__ == "__main__":
    main()
