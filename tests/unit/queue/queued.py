"""Work in a queue, in tests."""

from dataclasses import replace

from dreambooth_ray.queue.claims import ClaimedWork
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.storage.holder import make_process_holder
from dreambooth_ray.storage.store import Store

LEASE_S = 30.0


def add(queue: WorkQueue, work_id: str, owner: str = "ann", priority: int = 0, at: int = 0) -> None:
    queue.add(
        WorkRecord(id=work_id, owner=owner, payload=f"of {work_id}", priority=priority,
                   created_ms=1_700_000_000_000 + at)
    )  # fmt: skip


def claim(queue: WorkQueue) -> ClaimedWork:
    work = queue.claim_next(LEASE_S)
    assert work is not None
    return work


def claim_none(queue: WorkQueue) -> bool:
    return queue.claim_next(LEASE_S) is None


def drain(queue: WorkQueue) -> list[str]:
    """Ids in the order in which one process does them."""
    ids = []
    while (work := queue.claim_next(LEASE_S)) is not None:
        ids.append(work.record.id)
        queue.finish(work, "done")
    return ids


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_silent_on_another_host(store: Store, work_id: str) -> None:
    dead = replace(make_process_holder(LEASE_S), host="far")
    store.write(f"claims/{work_id}/lease-0001.json", dead.as_json())
