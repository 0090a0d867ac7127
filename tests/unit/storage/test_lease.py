"""Leases on a clock of the test's own: that a file changes counts, not what it says of time."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.holder import Holder, make_process_holder, parse_lease_holder
from dreambooth_ray.storage.lease import (
    Lease,
    LeaseFiles,
    LeaseLostError,
    LeaseSilenceWatch,
    LeaseSnapshot,
)
from dreambooth_ray.storage.lease_keeper import LeaseWaiter, get_run_lease_files
from dreambooth_ray.storage.paths import LEASES
from dreambooth_ray.storage.store import Store

LEASE_S = 60.0
ELSEWHERE = {"host": "far", "boot": "", "pid": 7}


class FakeClock:
    """Seconds that pass while somebody waits. on_wait(now): what others do meanwhile."""

    def __init__(self, on_wait: Callable[[float], None] = lambda now_s: None) -> None:
        self.now_s, self._on_wait = 1000.0, on_wait

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self._on_wait(self.now_s)


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    remote = f"memory://lease-{tmp_path.parent.name}-{tmp_path.name.replace('[', '').strip(']')}"
    return Store(str(tmp_path) if request.param == "local" else remote)


def take(
    run: Store,
    clock: FakeClock | None = None,
    lines: list[str] | None = None,
    patience_s: float = 0,
) -> Lease:
    clock, lines = clock or FakeClock(), [] if lines is None else lines
    files = get_run_lease_files(run, clock)
    return LeaseWaiter(files, LEASE_S, patience_s, lines.append, clock.wait).take()


def hold_elsewhere(run: Store, number: int = 4, skew_s: float = 0.0) -> Lease:
    """As a process of another host holds it, by its own clocks."""
    files = LeaseFiles(run, f"{LEASES}/")
    holder = replace(make_process_holder(LEASE_S), **ELSEWHERE)
    holder = replace(holder, seen=holder.seen + skew_s)
    run.write(files.lease_file_name(number), holder.as_json())
    return Lease(files, number, holder, files.clock())


def test_the_second_is_told_at_once_by_whom(run: Store) -> None:
    lease = take(run)
    clock = FakeClock()
    with pytest.raises(StorageError, match=r"is being trained by process \d+ on .*run_id"):
        take(run, clock)
    assert clock.now_s == 1000.0
    lease.release()
    assert take(run, clock).number == 2
    assert clock.now_s == 1000.0


def test_of_many_one_wins(run: Store) -> None:
    def attempt(_: int) -> Lease | None:
        try:
            return take(run)
        except StorageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        leases = [lease for lease in pool.map(attempt, range(8)) if lease]
    assert len(leases) == 1


def test_a_dead_holder_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from dreambooth_ray.storage.lease_keeper import *;"
        "from dreambooth_ray.storage.store import Store;"
        "LeaseWaiter(get_run_lease_files(Store(sys.argv[1])), 60.0).take(); os._exit(9)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60, capture_output=True
    )
    assert process.returncode == 9, process.stderr
    clock = FakeClock()
    assert take(Store(str(tmp_path)), clock).number == 2
    assert clock.now_s == 1000.0


@pytest.mark.parametrize("skew_s", [-600.0, 0.0, 600.0])
def test_a_holder_elsewhere_is_followed_when_silent_for_a_lease(run: Store, skew_s: float) -> None:
    hold_elsewhere(run, skew_s=skew_s)
    clock, lines = FakeClock(), list[str]()
    assert take(run, clock, lines).number == 5
    assert run.names(LEASES) == ["000005.json"]
    assert LEASE_S <= clock.now_s - 1000.0 < LEASE_S + 6
    assert len(lines) == 1
    assert "process 7 on far" in lines[0]
    assert "60 s" in lines[0]


@pytest.mark.parametrize("skew_s", [-600.0, 0.0, 600.0])
def test_a_holder_elsewhere_that_renews_is_alive(run: Store, skew_s: float) -> None:
    holder = hold_elsewhere(run, skew_s=skew_s)
    clock = FakeClock(lambda now_s: holder.renew() if now_s > 1009 else None)
    with pytest.raises(StorageError, match="is being trained by process 7 on far"):
        take(run, clock)
    assert clock.now_s < 1020


def test_patience_outlasts_a_holder_that_shows_signs_of_life(run: Store) -> None:
    holder = hold_elsewhere(run)
    clock = FakeClock(lambda now_s: holder.renew() if now_s < 1040 else None)
    assert take(run, clock, patience_s=300).number == 5
    assert clock.now_s >= 1040 + LEASE_S - 6


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"owner": "ab", "renewed_at": 9e9}', b'{"host": "far", "later": 1}'],
)
def test_what_is_not_understood_is_waited_for(run: Store, content: bytes) -> None:
    run.write(f"{LEASES}/000004.json", content)
    clock = FakeClock()
    assert take(run, clock).number == 5
    assert clock.now_s >= 1000 + Holder().lease_s


def test_a_holder_that_was_followed_learns_of_it(run: Store) -> None:
    lease = take(run)
    lease.renew()
    run.write(f"{LEASES}/000002.json", b"{}")
    with pytest.raises(LeaseLostError, match="taken over by another process"):
        lease.renew()
    assert json.loads(run.read(f"{LEASES}/000001.json"))["num_renewals"] == 1


def test_a_holder_of_what_was_removed_learns_of_it(run: Store) -> None:
    lease = take(run)
    lease.renew()
    run.remove(LEASES)
    with pytest.raises(LeaseLostError, match="has been removed by another process"):
        lease.renew()
    # Made anew meanwhile: by number, the two can't be told apart.
    other = take(run)
    assert other.number == lease.number == 1
    with pytest.raises(LeaseLostError, match="has been removed by another process"):
        lease.renew()
    other.renew()


def test_who_was_removed_gives_nothing_back(run: Store) -> None:
    """Neither to one who began anew, nor so that what was removed is there again."""
    lease = take(run)
    run.remove(LEASES)
    lease.release()
    assert run.names(LEASES) == []
    lease = take(run)
    run.remove(LEASES)
    other = take(run)
    lease.release()
    assert not get_run_lease_files(run).read_newest().is_free
    other.renew()


def test_a_lost_lease_has_no_time_left(run: Store) -> None:
    """Also where this process's clock stood still meanwhile."""
    lease = take(run)
    run.remove(LEASES)
    with pytest.raises(LeaseLostError):
        lease.renew()
    assert lease.seconds_until_expiry < 0


@pytest.mark.parametrize("field", ["lease_s", "released", "nonce", "pid"])
def test_a_value_of_another_type_is_left_as_unknown(field: str) -> None:
    holder = parse_lease_holder(json.dumps({field: [], "host": "far"}).encode())
    assert holder == Holder(host="far")


def test_a_lease_given_back_is_not_renewed(run: Store) -> None:
    lease = take(run)
    lease.release()
    lease.renew()
    assert take(run).number == 2


def test_a_renewal_on_its_way_is_not_the_last_word(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = take(run)
    is_writing, may_write = threading.Event(), threading.Event()
    write = Store.write

    def write_renewal_late(store: Store, name: str, data: bytes) -> None:
        if not json.loads(data)["released"]:
            is_writing.set()
            assert may_write.wait(10.0)
        write(store, name, data)

    monkeypatch.setattr(Store, "write", write_renewal_late)
    with ThreadPoolExecutor(2) as pool:
        renewal = pool.submit(lease.renew)
        assert is_writing.wait(10.0)
        giving_back = pool.submit(lease.release)
        wait([giving_back], timeout=0.2)
        may_write.set()
        renewal.result()
        giving_back.result()
    assert json.loads(run.read(get_run_lease_files(run).lease_file_name(1)))["released"]


def test_an_answer_that_never_came_is_no_lease_of_ours(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first creation is carried out, and its answer is lost for good."""
    create = Store.create

    def lose_answer(store: Store, name: str, data: bytes) -> bool:
        create(store, name, data)
        raise StorageError("away")

    monkeypatch.setattr(Store, "create", lose_answer)
    with pytest.raises(StorageError, match="away"):
        take(run)
    monkeypatch.undo()
    clock = FakeClock()
    assert take(run, clock).number == 2
    assert clock.now_s == 1000.0


def test_a_number_is_never_below_those_that_were_used(run: Store) -> None:
    files = get_run_lease_files(run)
    assert LeaseWaiter(files, LEASE_S).take(at_least=12).number == 12


@given(
    renewals=st.lists(st.tuples(st.floats(0.1, 40), st.floats(0, 30)), min_size=1, max_size=8),
    looks=st.lists(st.floats(0.1, 25), min_size=1, max_size=40),
    skew_s=st.floats(-1e6, 1e6),
)
def test_nobody_follows_a_holder_whose_time_is_not_up(
    renewals: list[tuple[float, float]], looks: list[float], skew_s: float
) -> None:
    """renewals: pause before each, and how long its write is on its way; looks: pauses between a
    watcher's. Their monotonic clocks differ by any amount and tick alike.
    """
    writes, at_s = [], 0.0
    for pause_s, delay_s in renewals:
        at_s += pause_s
        writes.append((at_s, at_s + delay_s))  # begun, and there for others to see
        at_s += delay_s
    now_s = 0.0
    watch = LeaseSilenceWatch(lambda: now_s + skew_s)
    for pause_s in looks:
        now_s += pause_s
        num_seen = sum(seen_at_s <= now_s for _, seen_at_s in writes)
        holder = Holder(num_renewals=num_seen, lease_s=LEASE_S)
        files = LeaseFiles(Store("memory://unused"), "x-", clock=partial(float, now_s))
        began_s = max((begun_s for begun_s, seen_at_s in writes if seen_at_s <= now_s), default=0.0)
        if watch.is_dead(LeaseSnapshot(1, holder.as_json(), holder)):
            assert Lease(files, 1, holder, began_s).seconds_until_expiry <= 0
            return
