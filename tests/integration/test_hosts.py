"""A run on two hosts, one of which loses its power. Needs root."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from tests.integration.conftest import DREAMBOOTH, read_curve
from tests.laptop import RUNS, Laptop, laptop_and_cluster

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]

STEPS = 60
SETTINGS = [
    f"storage.uri={RUNS}",
    "prior.count=6",
    "prior.actors=1",
    "prior.num_inference_steps=3",
    f"train.steps={STEPS}",
    "checkpoint.every=10",
    "sample.every=0",
]
ELASTIC = "cluster.workers={min: 1, max: 2}"


@pytest.fixture(scope="module")
def laptop(photos: Path) -> Iterator[Laptop]:
    with laptop_and_cluster(photos, hosts=2, cpus=1) as laptop:
        yield laptop


@pytest.fixture(scope="module")
def undisturbed(laptop: Laptop) -> list[dict[str, Any]]:
    with start_training(laptop, "undisturbed", "cluster.workers=2") as process:
        assert process.wait(400) == 0
    return curve("undisturbed")


def curve(run_id: str) -> list[dict[str, Any]]:
    return read_curve(Store(f"{RUNS}/runs/{run_id}"))


def start_training(laptop: Laptop, run_id: str, *words: str) -> "subprocess.Popen[bytes]":
    """`dreambooth train` on the head."""
    cluster = laptop.cluster
    overrides = [f"subject.photos={laptop.photos}", f"run_id={run_id}", *SETTINGS, *words]
    with (laptop.photos / f"{run_id}.log").open("w") as log:
        return subprocess.Popen(
            cluster.command("head", [DREAMBOOTH, "train", "toy-robot", *overrides]),
            env={**cluster.environment, "RAY_ADDRESS": cluster.address},
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def lose_the_host(laptop: Laptop, run_id: str, meanwhile: Callable[[], object]) -> None:
    """Train, and power the second host off once a checkpoint is there; finishes all the same."""
    words = ["cluster.workers=2"] if run_id == "replaced" else [ELASTIC]
    run = Store(f"{RUNS}/runs/{run_id}")
    with start_training(laptop, run_id, *words) as process:
        deadline = time.monotonic() + 300
        while not committed_steps(run):
            assert process.poll() is None, (laptop.photos / f"{run_id}.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)  # the interval of a poll
        laptop.cluster.kill(laptop.cluster.workers[0].name)
        at = curve(run_id)[-1]["step"]
        meanwhile()
        assert process.wait(600) == 0, (laptop.photos / f"{run_id}.log").read_text()
    print(f"{run_id}: a host gone at step {at}")
    assert at < STEPS
    assert is_finished(run)


def test_a_model_that_one_host_alone_has_trains_on_both(laptop: Laptop, toy_model: Path) -> None:
    """Each host has a /tmp of its own. Before the tests that leave fewer hosts behind."""
    cluster = laptop.cluster
    words = [
        DREAMBOOTH, "train", "toy-robot", f"subject.photos={laptop.photos}", "run_id=own-folder",
        *SETTINGS, "train.steps=4", "checkpoint.every=4", "cluster.workers=2",
        "model.uri=/tmp/own-model",
    ]  # fmt: skip
    script = f'cp -r "{toy_model}" /tmp/own-model && exec "$@"'
    done = subprocess.run(
        cluster.command("head", ["sh", "-c", script, "sh", *words]),
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run, storage = Store(f"{RUNS}/runs/own-folder"), Store(RUNS)
    assert is_finished(run)
    (pointer,) = [name for name in storage.names(paths.MODELS) if name.endswith(".json")]
    about = manifest.read_artifact_metadata(run, paths.checkpoint(4, 1))
    assert pointer == f"{about['model_hash']}.json"


def test_a_host_is_replaced(laptop: Laptop, undisturbed: list[dict[str, Any]]) -> None:
    lose_the_host(laptop, "replaced", laptop.cluster.add_worker)
    assert curve("replaced") == undisturbed


def test_a_host_is_done_without(laptop: Laptop, undisturbed: list[dict[str, Any]]) -> None:
    laptop.cluster.wait_ready()
    lose_the_host(laptop, "fewer", lambda: None)
    fewer = curve("fewer")
    assert [m["step"] for m in fewer] == list(range(1, STEPS + 1))
    worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(fewer, undisturbed, strict=True))
    print(f"worst difference of the losses {worst:.1e}")
    assert worst <= 1e-4
