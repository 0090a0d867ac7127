import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_ray.errors import StorageError
from dreambooth_ray.queue.claims import Claims
from dreambooth_ray.storage.holder import make_process_holder
from dreambooth_ray.storage.lease import Lease
from dreambooth_ray.storage.store import Store

LEASE_S = 15.0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def records(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_of_many_one_claims_a_record(records: Store) -> None:
    runners = [Claims(records) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda claims: claims.claim("job", LEASE_S), runners))
    assert len([lease for lease in leases if lease]) == 1


@pytest.mark.parametrize("skew_s", [-600.0, 600.0])
def test_a_silent_runner_elsewhere_is_followed_whatever_its_clock_says(
    records: Store, skew_s: float
) -> None:
    holder = replace(make_process_holder(LEASE_S), host="far", seen=time.time() + skew_s)
    records.write("job/lease-0003.json", holder.as_json())
    clock = Clock()
    claims = Claims(records, clock)
    assert claims.claim("job", LEASE_S) is None
    clock.now_s = LEASE_S - 1
    records.write("job/lease-0003.json", holder.renewed().as_json())
    assert claims.claim("job", LEASE_S) is None
    clock.now_s += LEASE_S - 1
    assert claims.claim("job", LEASE_S) is None
    clock.now_s += 1
    lease = claims.claim("job", LEASE_S)
    assert lease is not None
    assert lease.number == 4


def test_a_dead_runner_of_this_machine_is_followed_at_once(records: Store) -> None:
    holder = replace(
        make_process_holder(LEASE_S), started=1.0
    )  # its process id is another's by now
    records.write("job/lease-0001.json", holder.as_json())
    assert Claims(records).claim("job", LEASE_S) is not None


def test_claims_of_earlier_versions_count_for_a_lease(records: Store) -> None:
    content = {"owner": "ab", "renewed_at": time.time(), "nonce": "cd"}
    records.write("job/lease-0000.json", json.dumps(content).encode())
    clock = Clock()
    claims = Claims(records, clock)
    assert claims.claim("job", LEASE_S) is None
    clock.now_s = LEASE_S
    lease = claims.claim("job", LEASE_S)
    assert lease is not None
    assert lease.number == 1


class SilentStore(Store):
    """Takes no writes once `is_silent` is set."""

    is_silent = threading.Event()

    def write(self, name: str, data: bytes) -> None:
        if self.is_silent.is_set():
            raise StorageError("away")
        super().write(name, data)


def test_a_runner_that_can_not_renew_gives_up_when_its_time_is_up(tmp_path: Path) -> None:
    clock, records = Clock(), SilentStore(str(tmp_path))
    records.is_silent = threading.Event()
    claims = Claims(records, clock)
    lease: Lease | None = claims.claim("job", LEASE_S)
    assert lease is not None
    assert claims.renew(lease)
    records.is_silent.set()
    clock.now_s = LEASE_S / 2
    assert claims.renew(lease)
    clock.now_s = LEASE_S * 0.9
    assert not claims.renew(lease)


def test_a_runner_that_was_followed_gives_up(records: Store) -> None:
    claims = Claims(records)
    lease = claims.claim("job", LEASE_S)
    assert lease is not None
    records.write("job/lease-0002.json", b"{}")
    assert not claims.renew(lease)


def test_records_that_end_elsewhere_are_not_watched_for_ever(
    records: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreambooth_ray.queue.claims._MOST_WATCHED", 4)
    claims = Claims(records)
    for number in range(9):
        far = replace(make_process_holder(LEASE_S), host="far")
        records.write(f"job{number}/lease-0001.json", far.as_json())
        assert claims.claim(f"job{number}", LEASE_S) is None
    assert len(claims._watches) == 4
