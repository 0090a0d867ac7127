"""Runs on a cluster of three hosts and an object store, sent from a fourth host. Needs root."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.metrics_log import read_metrics
from tests.laptop import RUNS, Laptop, laptop_and_cluster
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]

SETTINGS = [
    "prior.count=6",
    "prior.actors=1",
    "prior.num_inference_steps=3",
    "train.steps=60",
    "checkpoint.every=10",
    "sample.every=0",
]


@pytest.fixture(scope="module")
def laptop(photos: Path) -> Iterator[Laptop]:
    with laptop_and_cluster(photos) as laptop:
        yield laptop


def run_store(run_id: str) -> Store:
    return Store(f"{RUNS}/runs/{run_id}")


def finished(run_id: str) -> bool:
    return manifest.MANIFEST in run_store(run_id).names("bundle")


def curve(run_id: str) -> list[tuple[Any, Any]]:
    return [(m["step"], m["loss"]) for m in read_metrics(run_store(run_id))]


def test_a_run_outlives_its_sender_and_a_host(laptop: Laptop) -> None:
    assert laptop.submit("first", *SETTINGS) == "first"
    assert laptop.submit("first", *SETTINGS) == "first"
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
    laptop.submit("second", *SETTINGS)
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
