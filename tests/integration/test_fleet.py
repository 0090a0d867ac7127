"""Eight subjects on three hosts, one of which dies on the way. Needs root."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.metrics_log import read_metrics
from tests.integration.conftest import DREAMBOOTH
from tests.laptop import RUNS, Laptop, laptop_and_cluster

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]

NAMES = [f"robot-{k}" for k in range(8)]
STEPS = 40
SETTINGS = [
    f"storage.uri={RUNS}",
    "train.method=lora",
    "cluster.workers=1",
    "prior.count=6",
    "prior.actors=1",
    "prior.num_inference_steps=3",
    f"train.steps={STEPS}",
    "checkpoint.every=10",
    "sample.every=0",
]


@pytest.fixture(scope="module")
def laptop(photos: Path) -> Iterator[Laptop]:
    with laptop_and_cluster(photos) as laptop:
        yield laptop


def write_fleet(folder: Path) -> Path:
    subjects = []
    for seed, name in enumerate(NAMES):
        write_photographs(folder / name, seed, "robot", 3, size_px=96)
        own = {"id": name, "photos": str(folder / name), "class_noun": "robot"}
        subjects.append({**own, "owner": "ann" if seed < 6 else "bob"})
    file = folder / "subjects.yaml"
    about = {"recipe": "toy-robot", "overrides": SETTINGS, "parallel": 2, "subjects": subjects}
    file.write_text(yaml.safe_dump(about))
    return file


def read_bundle_manifests() -> dict[str, bytes]:
    """The manifest of every bundle there is."""
    manifests = {}
    for name in NAMES:
        bundle = Store(f"{RUNS}/runs/{name}/bundle")
        if bundle.exists(manifest.MANIFEST):
            manifests[name] = bundle.read(manifest.MANIFEST)
    return manifests


def test_a_fleet_loses_a_host_and_no_subject(laptop: Laptop) -> None:
    cluster, file = laptop.cluster, write_fleet(laptop.photos)
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    start_s = time.monotonic()
    log = laptop.photos / "fleet.log"
    with log.open("w") as out:
        fleet = subprocess.Popen(
            cluster.command("head", [DREAMBOOTH, "fleet", str(file)]),
            env=environment, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while len(read_bundle_manifests()) < 2:
            assert fleet.poll() is None, log.read_text()
            time.sleep(0.5)  # the interval of a poll
        cluster.kill(cluster.workers[0].name)
        assert fleet.wait(900) == 0, log.read_text()
    print(f"fleet of {len(NAMES)}, a host killed: {time.monotonic() - start_s:.0f} s")
    print(log.read_text())
    first = read_bundle_manifests()
    assert sorted(first) == NAMES
    for name in NAMES:
        steps = [m["step"] for m in read_metrics(Store(f"{RUNS}/runs/{name}"))]
        assert steps == list(range(1, STEPS + 1)), name
    assert len(Store(RUNS).names("priors")) == 1
    second_run = cluster.run_in_host(
        "head", [DREAMBOOTH, "fleet", str(file)], env=environment, capture_output=True, text=True
    )
    assert second_run.returncode == 0, second_run.stderr
    assert second_run.stdout.count("was done before") == len(NAMES)
    assert read_bundle_manifests() == first
