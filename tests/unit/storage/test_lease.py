import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.lease import LEASES, Lease
from dreambooth_ray.storage.store import Store


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    remote = f"memory://lease-{tmp_path.parent.name}-{tmp_path.name.replace('[', '').strip(']')}"
    return Store(str(tmp_path) if request.param == "local" else remote)


def test_the_second_is_refused_and_told_by_whom(run: Store) -> None:
    with Lease(run), pytest.raises(StorageError, match=r"process \d+ on .*run_id"):
        Lease(run).__enter__()
    with Lease(run):
        pass


def test_of_many_one_wins(run: Store) -> None:
    def attempt(_: int) -> Lease | None:
        try:
            return Lease(run).__enter__()
        except StorageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [lease for lease in pool.map(attempt, range(8)) if lease]
    assert len(won) == 1
    won[0].__exit__(None, None, None)


def test_a_dead_holder_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from dreambooth_ray.storage.lease import Lease;"
        "from dreambooth_ray.storage.store import Store;"
        "Lease(Store(sys.argv[1])).__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert Store(str(tmp_path)).names(LEASES)
    with Lease(Store(str(tmp_path))):
        pass


def test_patience_outlasts_a_holder_elsewhere(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreambooth_ray.storage.lease._POLL_S", 0.01)
    holder = {"host": "far", "boot": "", "pid": 1, "started": 1.0, "seen": time.time() - 89.7}
    run.write(f"{LEASES}/000004.json", json.dumps(holder).encode())
    with Lease(run, patience_s=5.0):
        assert run.names(LEASES) == ["000005.json"]


@pytest.mark.parametrize(("silence_s", "is_taken"), [(10, False), (200, True)])
def test_a_holder_elsewhere_is_followed_when_silent(
    run: Store, silence_s: float, is_taken: bool
) -> None:
    holder = {"host": "far", "boot": "", "pid": 1, "started": 1.0, "seen": time.time() - silence_s}
    run.write(f"{LEASES}/000004.json", json.dumps(holder).encode())
    if not is_taken:
        with pytest.raises(StorageError, match="far"):
            Lease(run).__enter__()
        return
    with Lease(run):
        assert run.names(LEASES) == ["000005.json"]


def test_a_holder_that_was_followed_stops(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreambooth_ray.storage.lease._RENEW_INTERVAL_S", 0.01)
    with pytest.raises(StorageError, match="taken by another process"), Lease(run):
        run.write(f"{LEASES}/000002.json", b"{}")
        threading.Event().wait(60)
    assert "000002.json" in run.names(LEASES)
