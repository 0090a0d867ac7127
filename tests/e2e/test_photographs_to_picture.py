"""Photographs in, an image of their subject out: cluster, object store, endpoint and client."""

import base64
import io
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from PIL import Image

from cluster.local_cluster import LocalCluster
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.evaluation.toyscore import subject_fidelity
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.training.metrics_log import read_metrics
from tests.integration.conftest import kill_tree, start_dreambooth
from tests.integration.test_serve import wait_for_address
from tests.laptop import RUNS, Laptop, laptop_and_cluster
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]

RUN = "my-robot"
STEPS = 320
SETTINGS = ["prior.count=40", f"train.steps={STEPS}", "sample.every=0", "checkpoint.every=40"]
RISE = 0.4  # of subject fidelity over the base model: the demo's bar


@pytest.fixture(scope="module")
def laptop(photos: Path) -> Iterator[Laptop]:
    with laptop_and_cluster(photos) as laptop:
        yield laptop


@pytest.fixture(scope="module")
def client(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """An endpoint over the cluster's object store; the run does not exist yet."""
    folder = tmp_path_factory.mktemp("endpoint")
    process = start_dreambooth("serve", f"storage.uri={RUNS}", "--port", "0", cwd=folder)
    try:
        address = wait_for_address(process)
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    finally:
        kill_tree(process)


def train_workers(cluster: LocalCluster) -> list[psutil.Process]:
    """Training processes on the cluster's hosts, and on no other."""
    inside = [
        child
        for host in cluster.hosts
        for child in psutil.Process(host.pid).children(recursive=True)
    ]
    return [child for child in inside if "RayTrainWorker" in describe_process(child)]


def describe_process(process: psutil.Process) -> str:
    """Its name and command; nothing of one that has just ended."""
    try:
        return process.name() + str(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def draw(client: openai.OpenAI, model: str) -> list[Image.Image]:
    made = client.images.generate(
        model=model, prompt="a sks robot", n=6, extra_body={"seed": 1000}
    ).data
    assert made is not None
    return [Image.open(io.BytesIO(base64.b64decode(image.b64_json or ""))) for image in made]


def test_photographs_become_a_subject_that_is_served(
    laptop: Laptop, client: openai.OpenAI, photos: Path
) -> None:
    before = draw(client, "toyworld")
    run = Store(f"{RUNS}/runs/{RUN}")
    assert laptop.submit(RUN, *SETTINGS) == RUN
    some = random.randrange(STEPS // 4, STEPS // 2)
    wait_until(lambda: (read_metrics(run) or [{"step": 0}])[-1]["step"] >= some, 400)
    random.choice(train_workers(laptop.cluster)).kill()
    wait_until(lambda: manifest.MANIFEST in run.names("bundle"), 600)
    committed = time.monotonic()
    wait_until(lambda: RUN in [model.id for model in client.models.list()], 60)
    listed = time.monotonic() - committed
    after = draw(client, RUN)
    drawn = time.monotonic() - committed
    print(f"killed after step {some}; listed {listed:.1f} s after the commit, drawn {drawn:.1f} s")
    assert [m["step"] for m in read_metrics(run)] == list(range(1, STEPS + 1))
    real, network = [read_photograph(p) for p in find_photographs(photos)], load_evaluator()
    was, became = (subject_fidelity(images, real, network) for images in (before, after))
    print(f"subject fidelity {was:.3f} -> {became:.3f}")
    assert became - was >= RISE
