"""What a holder does whose lease is lost, and what it does not mind."""

import errno
import threading
from pathlib import Path

import pytest

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.lease import LeaseExpiredError, LeaseLostError
from dreambooth_ray.storage.lease_keeper import LeaseKeeper, LeaseWaiter, get_run_lease_files
from dreambooth_ray.storage.paths import LEASES
from dreambooth_ray.storage.store import Store

# The keeper's threads run by the machine's clock: an expiry is awaited, nothing is timed.
LEASE_S = 0.6
TIMEOUT_S = 60.0


class FailingStore(Store):
    """Writes fail with `error` while there is one; `was_asked` tells of a failed one."""

    error: Exception | None = None

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.was_asked, self.was_written = threading.Event(), threading.Event()

    def write(self, name: str, data: bytes) -> None:
        if self.error is not None:
            self.was_asked.set()
            raise self.error
        super().write(name, data)
        self.was_written.set()


@pytest.fixture
def run(tmp_path: Path) -> FailingStore:
    return FailingStore(str(tmp_path))


def keeper(run: Store, lease_s: float, lines: list[str] | None = None) -> LeaseKeeper:
    say = (lines if lines is not None else []).append
    return LeaseKeeper(LeaseWaiter(get_run_lease_files(run), lease_s, say=say), say)


def test_it_is_held_and_given_back(run: FailingStore) -> None:
    with keeper(run, 60) as lease:
        lease.check()
        with pytest.raises(StorageError, match="is being trained by process"):
            keeper(run, 60).__enter__()
    with keeper(run, 60) as lease:
        assert lease.number == 2


def test_who_was_followed_is_ended(run: FailingStore) -> None:
    ended = threading.Event()
    with (
        pytest.raises(LeaseLostError, match="taken over"),
        keeper(run, LEASE_S) as lease,
        lease.calling_on_loss(ended.set),
    ):
        run.write(f"{LEASES}/000002.json", b"{}")
        assert ended.wait(TIMEOUT_S)
    # Too late for anything new: it ends at once.
    late = threading.Event()
    with pytest.raises(LeaseLostError), lease.calling_on_loss(late.set):
        assert late.is_set()
    assert run.read(f"{LEASES}/000002.json") == b"{}"


def test_who_can_not_renew_is_ended_and_may_begin_anew(run: FailingStore) -> None:
    ended, lines = threading.Event(), list[str]()
    with (
        pytest.raises(LeaseExpiredError, match="resume"),
        keeper(run, LEASE_S, lines) as lease,
        lease.calling_on_loss(ended.set),
    ):
        run.error = StorageError("storage does not answer")
        assert ended.wait(TIMEOUT_S)
        raise StorageError("what the block itself says of storage")
    assert len([line for line in lines if "renewing the lease failed" in line]) == 1
    run.error = None
    with keeper(run, 60) as lease:
        assert lease.number == 2


@pytest.mark.parametrize(
    "error", [StorageError("access is denied"), OSError(errno.ESTALE, "stale file handle")]
)
def test_an_error_once_ends_no_heartbeat(run: FailingStore, error: Exception) -> None:
    lines: list[str] = []
    with keeper(run, 12, lines) as lease:
        run.error = error
        assert run.was_asked.wait(TIMEOUT_S)
        run.was_written.clear()
        run.error = None
        assert run.was_written.wait(TIMEOUT_S)
        lease.check()
    assert len(lines) == 1
    assert type(error).__name__ in lines[0]
    assert "tried again" in lines[0]


def test_a_lease_that_can_not_be_given_back_hides_no_error(run: FailingStore) -> None:
    lines: list[str] = []
    with pytest.raises(ValueError, match="its own"), keeper(run, 60, lines):
        run.error = StorageError("away")
        raise ValueError("its own")
    assert "giving the lease back failed" in lines[0]
    run.error = None
    with keeper(run, 60) as lease:  # this process knows that nobody holds it
        assert lease.number == 2
