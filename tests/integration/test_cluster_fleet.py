"""A queue of subjects on three hosts, sent from a fourth: workers come and go, and are killed.

Needs root.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.cluster_registry import find_cluster
from cluster.fleet_jobs import FleetJobs
from cluster.fleet_store import FleetStore
from cluster.local_cluster import CLUSTERS
from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.metrics_log import read_metrics
from tests.integration.conftest import DREAMBOOTH
from tests.laptop import RUNS, Laptop, laptop_and_cluster
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]

NAMES = [f"robot-{number}" for number in range(8)]
STEPS = 60
SETTINGS = [
    f"storage.uri={RUNS}", "train.method=lora", "train.text_encoder=false", "sample.every=0",
    "prior.count=6", "prior.actors=1", "prior.num_inference_steps=3", f"train.steps={STEPS}",
    "checkpoint.every=10", "cluster.workers=1", "cluster.lease_s=10",
]  # fmt: skip
STORAGE = ("--storage", RUNS)
RUN = ("fleet", "run", *STORAGE, "--slots", "6", "--parallel", "0-3", "--idle-s", "5", "--stay")


@pytest.fixture(scope="module")
def laptop(photos: Path) -> Iterator[Laptop]:
    with laptop_and_cluster(photos) as laptop:
        yield laptop


def add(laptop: Laptop, *names: str) -> None:
    """Put subjects into the queue, from the laptop."""
    subjects = []
    for name in names:
        write_photographs(laptop.photos / name, len(name), "robot", 3, size_px=96)
        photos = str(laptop.photos / name)
        subjects.append({"id": name, "photos": photos, "class_noun": "robot", "owner": name[-1]})
    file = laptop.photos / f"{names[0]}.yaml"
    fleet = {"recipe": "toy-robot", "overrides": SETTINGS, "subjects": subjects}
    file.write_text(yaml.safe_dump(fleet))
    added = laptop.cluster.execute(
        "client", [DREAMBOOTH, "fleet", "add", str(file)], capture_output=True, text=True
    )
    assert added.returncode == 0, added.stderr


def count_steps() -> int:
    return sum(len(read_metrics(Store(f"{RUNS}/runs/{name}"))) for name in NAMES)


def find_driver() -> psutil.Process:
    """The process that works through the queue, on the head."""
    words = "'--stay']; from dreambooth_ray"
    (driver,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"]
        and process.info["cmdline"][0].endswith("python")
        and words in process.info["cmdline"][-1]
    ]
    return driver


def test_subjects_on_a_cluster_survive_worker_and_driver_and_workers_follow_what_waits(
    laptop: Laptop,
) -> None:
    cluster = laptop.cluster
    add(laptop, *NAMES)
    fleet = laptop(*RUN)
    assert laptop(*RUN) == fleet  # it is started once
    wait_until(lambda: count_steps() >= STEPS)
    # Eight subjects take four workers of two slots, of which three may be.
    assert "a worker of 2 slots is started, of now 3" in laptop("fleet", "logs", *STORAGE)
    cluster.kill(cluster.workers[0].name)
    wait_until(lambda: "a worker is lost" in laptop("fleet", "logs", *STORAGE))
    num_steps = count_steps()
    wait_until(lambda: count_steps() > num_steps)
    find_driver().kill()
    jobs = FleetJobs(find_cluster("local", cluster.folder / CLUSTERS))
    wait_until(lambda: jobs.get_of(RUNS).state == "failed")
    assert laptop(*RUN) == fleet
    wait_until(lambda: all(is_finished(Store(f"{RUNS}/runs/{name}")) for name in NAMES), 600)
    for name in NAMES:
        steps = [record["step"] for record in read_metrics(Store(f"{RUNS}/runs/{name}"))]
        assert steps == list(range(1, STEPS + 1)), name
    assert len(Store(RUNS).names("priors")) == 1
    wait_until(lambda: "an idle worker is ended; 0 are left" in laptop("fleet", "logs", *STORAGE))


def test_a_standing_fleet_starts_a_worker_for_one_who_comes_later(laptop: Laptop) -> None:
    """After the test before: nobody is there."""
    num_started = laptop("fleet", "logs", *STORAGE).count("is started, of now 1")
    add(laptop, "late")
    wait_until(lambda: is_finished(Store(f"{RUNS}/runs/late")))
    wait_until(lambda: laptop("fleet", "logs", *STORAGE).rstrip().endswith("ended; 0 are left"))
    said = laptop("fleet", "logs", *STORAGE)
    assert said.count("is started, of now 1") == num_started + 1
    assert laptop("fleet", "stop", *STORAGE).endswith("stopped")
    assert laptop("fleet", "stop", *STORAGE).endswith("does not run: stopped")
    ended = FleetStore(RUNS).list_ended()
    assert sorted(work.id for _, work in ended) == sorted([*NAMES, "late"])
    assert {work.state for _, work in ended} == {"done"}


def test_a_folder_of_the_laptop_is_refused_by_name(laptop: Laptop, tmp_path: Path) -> None:
    name = ["--cluster", "local", "--clusters", str(laptop.cluster.folder / CLUSTERS)]
    command = [DREAMBOOTH, "fleet", "run", "--storage", str(tmp_path), *name]
    refused = laptop.cluster.execute("client", command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "it is a folder of this machine" in refused.stderr
