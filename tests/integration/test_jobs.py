"""Runs on a cluster of three hosts and an object store, sent from a fourth host. Needs root."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local import CLUSTERS, LocalCluster
from cluster.object_store import BUCKET
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint import committed_steps
from dreambooth_ray.training.journal import read_metrics
from tests.integration.conftest import DREAMBOOTH

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]

RUNS = f"s3://{BUCKET}/runs"
SETTINGS = [
    f"storage.uri={RUNS}",
    "prior.count=6",
    "prior.actors=1",
    "prior.num_inference_steps=3",
    "train.steps=60",
    "checkpoint.every=10",
    "sample.every=0",
]


class Laptop:
    """A host without Ray that sends commands."""

    def __init__(self, cluster: LocalCluster, photos: Path) -> None:
        self.cluster, self.photos = cluster, photos
        cluster.add_client()

    def __call__(self, *words: str, check: bool = True) -> str:
        name = ["--cluster", "local", "--clusters", str(self.cluster.folder / CLUSTERS)]
        done = self.cluster.execute(
            "client", [DREAMBOOTH, *words, *name], capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stderr
        return str(done.stdout).strip()

    def submit(self, run_id: str) -> str:
        return self(
            "submit", "toy-robot", f"subject.photos={self.photos}", f"run_id={run_id}", *SETTINGS
        )


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Iterator[Laptop]:
    # Not below /tmp: a host has a /tmp of its own, and the laptop must find its photographs.
    home = Path(__file__).parents[2] / "out"
    home.mkdir(exist_ok=True)
    folder = home / f"cluster-{os.getpid()}"
    own = home / f"photos-{os.getpid()}"
    shutil.copytree(photos, own)
    cluster = LocalCluster.up(folder, 3, 2, s3=True)
    try:
        for key, value in cluster.s3_environment.items():
            os.environ[key] = value
        yield Laptop(cluster, own)
    finally:
        for key in cluster.s3_environment:
            os.environ.pop(key, None)
        cluster.down()
        shutil.rmtree(own)


def wait_until(met: Callable[[], bool], timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.5)  # the interval of a poll


def run_store(run_id: str) -> Store:
    return Store(f"{RUNS}/runs/{run_id}")


def finished(run_id: str) -> bool:
    return manifest.MANIFEST in run_store(run_id).names("bundle")


def curve(run_id: str) -> list[tuple[Any, Any]]:
    return [(m["step"], m["loss"]) for m in read_metrics(run_store(run_id))]


def test_a_run_outlives_its_sender_and_a_host(laptop: Laptop) -> None:
    assert laptop.submit("first") == "first"
    assert laptop.submit("first") == "first"
    jobs = laptop("ls").splitlines()
    assert len(jobs) == 1, jobs
    laptop.cluster.kill("client")
    wait_until(lambda: committed_steps(run_store("first")) != [])
    # A host without the job's driver: the head has that, and is not killed.
    laptop.cluster.kill(laptop.cluster.workers[0].name)
    wait_until(lambda: finished("first"))
    assert [step for step, _ in curve("first")] == list(range(1, 61))


def test_stopped_and_resumed_is_the_same_curve(laptop: Laptop) -> None:
    laptop.cluster.add_client()
    laptop.submit("second")
    wait_until(lambda: len(curve("second")) >= 5)
    assert laptop("stop", "second") == "second stopped"
    stopped = committed_steps(run_store("second"))[-1]
    assert 5 <= stopped < 60
    assert "\tstopped\t" in laptop("ls")
    laptop("resume", "second")
    said = laptop("watch", "second")
    assert said.splitlines()[-1] == "finished", said
    assert "images/s" in said
    assert "training" in laptop("logs", "second")
    assert curve("second") == curve("first")
