"""Holders of one run that are frozen, cut off and killed at any call of storage: never a mixed run.

The leases, takeovers, commits, rotation and metrics are the product's own; what is trained is a
list that names, for each step, the lease it was trained under. So a mixture of two shows.
"""

import contextlib
import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import CheckpointError, StorageError
from dreambooth_ray.storage import fence, holder, lease, manifest, paths
from dreambooth_ray.storage.lease import Lease, LeaseLostError
from dreambooth_ray.storage.lease_keeper import LeaseWaiter, get_run_lease_files
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import metrics_log
from dreambooth_ray.training.checkpoint import download, retention
from dreambooth_ray.training.metrics_log import MetricsLog, read_metrics
from tests.unit.training.checkpoint.turns import Actor, Turns, TurnStore, write_file

NUM_STEPS, INTERVAL = 12, 3
LEASE_S = 60.0
CONFIG = parse_config(
    "subject: {photos: none, class_noun: robot}\ncheckpoint: {keep: 1}", "test", []
)
ODDS = {"frozen": 0.01, "cut off": 0.005, "killed": 0.001}


class Contest:
    """Three processes that all want to finish one run."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.uri, self.folder = f"memory://two-holders-{folder.name}-{seed}", folder
        self.turns = Turns(seed, 2 * LEASE_S)
        self.numbers = itertools.count()
        self.has_committed = False
        for name in ("one", "two", "three"):
            self.turns.add(name, self.take_part)

    def take_part(self, actor: Actor) -> None:
        """As `dreambooth resume` does it: wait, take over, go on, until the run is finished."""
        store = TurnStore(self.uri, actor)
        while True:
            with contextlib.suppress(StorageError, CheckpointError):
                newest = fence.read_history(store).newest_lease
                waiter = LeaseWaiter(
                    get_run_lease_files(store, actor.clock),
                    LEASE_S,
                    1e9,
                    lambda _: None,
                    actor.pause,
                )
                held = waiter.take(newest + 1)
                if self.train(actor, store, held):
                    held.release()
                    return
            actor.pause(self.turns.random.uniform(1, 20))

    def train(self, actor: Actor, store: Store, held: Lease) -> bool:
        """Whether the run is finished."""
        fence.record_resumed_step(store, held.number)
        folder = self.folder / f"restored-{next(self.numbers)}"
        restored = download.download_newest_checkpoint(store, folder)
        trained = json.loads(restored.state.read_text()) if restored else []
        log = MetricsLog(store, len(trained), held.number)
        try:
            return self.train_steps(actor, store, held, log, trained)
        finally:
            with contextlib.suppress(StorageError):
                log.close()

    def train_steps(
        self, actor: Actor, store: Store, held: Lease, log: MetricsLog, trained: list[int]
    ) -> bool:
        """Whether the last step was reached in time."""
        renewed_at_s = actor.clock()
        while len(trained) < NUM_STEPS:
            # Workers know nothing of the lease: they are ended some time after it was lost.
            if held.seconds_until_expiry <= 0 and self.turns.random.random() < 0.1:
                return False
            if actor.clock() - renewed_at_s > held.renew_interval_s:
                renewed_at_s = actor.clock()
                with contextlib.suppress(LeaseLostError):
                    held.renew()
            trained = [*trained, held.number]
            log.append([{"step": len(trained), "lease": held.number}])
            if len(trained) % INTERVAL == 0:
                self.commit(store, log, trained, held.number)
        log.flush()
        return held.seconds_until_expiry > 0

    def commit(self, store: Store, log: MetricsLog, trained: list[int], number: int) -> None:
        name = paths.checkpoint(len(trained), number)
        local = self.folder / f"saved-{next(self.numbers)}"
        write_file(local, download.STATE, json.dumps(trained))
        folder = f"{name}-{local.name}"
        entries = manifest.upload_files(store, folder, local)
        log.flush()
        manifest.commit_uploaded(store, name, folder, entries, {"step": len(trained)})
        retention.remove_old_checkpoints(store, CONFIG, number)

    def look(self) -> None:
        """What any reader sees at any moment: checkpoints of one history, and never none again."""
        store = Store(self.uri)
        histories = []
        for checkpoint in fence.read_history(store).checkpoints.values():
            with contextlib.suppress(CheckpointError):  # removed by pointer first
                text = manifest.read_artifact_file(store, checkpoint.name, download.STATE)
                histories.append(json.loads(text))
                assert len(histories[-1]) == checkpoint.step
        for earlier, later in itertools.pairwise(histories):
            assert later[: len(earlier)] == earlier
        assert histories or not self.has_committed
        self.has_committed = bool(histories)


@pytest.fixture
def hosts_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lease is held on a host of its own, whose clock is minutes off."""
    hosts = itertools.count()

    def make_process_holder(lease_s: float, purpose: str = "") -> holder.Holder:
        number, skew_s = next(hosts), (-600.0, 0.0, 600.0)
        return replace(
            holder.make_process_holder(lease_s, purpose),
            host=f"h{number}",
            seen=time.time() + skew_s[number % 3],
        )

    monkeypatch.setattr(lease, "make_process_holder", make_process_holder)
    # Metrics are written at the commits alone: by the test's clock there is no other.
    monkeypatch.setattr(metrics_log, "REMOTE_INTERVAL_S", float("inf"))


@pytest.mark.usefixtures("hosts_apart")
@pytest.mark.parametrize("seed", range(50))
def test_two_holders_never_mix(seed: int, tmp_path: Path) -> None:
    contest = Contest(seed, tmp_path)
    contest.turns.run(contest.look, ODDS)
    store = Store(contest.uri)
    final = fence.find_checkpoint(store, NUM_STEPS)
    trained = json.loads(manifest.read_artifact_file(store, final.name, download.STATE))
    assert [(r["step"], r["lease"]) for r in read_metrics(store)] == list(enumerate(trained, 1))
    assert trained == sorted(trained)
    shutil.rmtree(tmp_path)


@pytest.mark.usefixtures("hosts_apart")
def test_the_schedules_do_what_they_are_for(tmp_path: Path) -> None:
    """Holders were frozen, cut off, killed and followed, and wrote when they woke."""
    counts = {"frozen": 0, "cut off": 0, "killed": 0, "followed": 0, "void": 0}
    for seed in range(25):
        contest = Contest(seed, tmp_path / str(seed))
        void: set[fence.CheckpointId] = set()
        store = Store(contest.uri)
        contest.turns.run(
            lambda: void.update(fence.read_history(store).voided_checkpoints),  # noqa: B023
            ODDS,
        )
        counts["followed"] += fence.read_history(store).newest_lease - 1
        counts["void"] += len(void)
        for name, count in contest.turns.counts.items():
            counts[name] += count
    print(counts)
    assert min(counts.values()) > 5, counts
