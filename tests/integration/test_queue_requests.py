"""What a queue costs on an object store: requests, whatever its length."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkMark, WorkRecord
from dreambooth_ray.storage.store import Store
from tests.fault_proxy import FaultProxy

pytestmark = pytest.mark.fault

# More than a page of S3 has.
NUM_WAITING, NUM_OWNERS = 1_300, 3


def make_record(number: int) -> WorkRecord:
    owner = f"owner-{number % NUM_OWNERS}"
    return WorkRecord(id=f"w{number}", owner=owner, payload="", created_ms=1_000_000 + number)


def test_a_call_takes_as_many_requests_however_many_wait(
    fault_proxy: FaultProxy, proxied_uri: str
) -> None:
    store = Store(proxied_uri)
    queue = WorkQueue(store)

    def add_mark(number: int) -> None:
        store.write(f"waiting/{WorkMark.of(make_record(number)).name}", b"")

    def count_requests() -> dict[str, int]:
        """Of each call, once."""
        counts = {}
        number = next(numbers)
        for name, call in {
            "add": lambda: queue.add(make_record(number)),
            "list": lambda: queue.list_marks("waiting", "", 50),
            "claim": lambda: queue.claim_next(60.0),
        }.items():
            before = sum(fault_proxy.counts.values())
            assert call() or name == "add"
            counts[name] = sum(fault_proxy.counts.values()) - before
        return counts

    numbers = iter(range(NUM_WAITING, NUM_WAITING + 100))
    for number in range(6):
        queue.add(make_record(number))
    short = count_requests()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(add_mark, range(10, NUM_WAITING)))
    long = count_requests()
    print(short, long)
    assert long["list"] == short["list"] == 1
    assert long["add"] == short["add"] <= 3
    assert long["claim"] <= short["claim"] + 1
    assert short["claim"] <= 14
