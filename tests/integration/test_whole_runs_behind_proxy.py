"""Whole runs whose object store spoils one request in twenty, beside runs that nothing disturbs.

All run in one Ray of this process: what starts is the workers, not the world.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cluster.fleet_plan import load_fleet
from cluster.fleet_run import run_fleet
from cluster.session import session
from dreambooth_ray import api
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.file_listing import list_files
from dreambooth_ray.storage.garbage import find_garbage, remove_garbage
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from tests.fault_proxy import FaultProxy, FaultSchedule
from tests.integration.conftest import read_curve
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1200)]

STRATEGIES = {
    "ddp": ["train.strategy=ddp"],
    "fsdp2": ["train.strategy=fsdp2"],
    "zero2": ["train.strategy=deepspeed", "train.deepspeed.stage=2"],
}
SEEDS = range(10)
SETTINGS = [
    "cluster.workers=2",
    "prior.count=4",
    "prior.actors=1",
    "prior.batch_size=2",
    "prior.num_inference_steps=2",
    "train.steps=6",
    "checkpoint.every=2",
    "checkpoint.keep=1",
    "sample.every=0",
]
Outcome = tuple[list[dict[str, Any]], str, Counter[str]]


@pytest.fixture(scope="module")
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    proxy = FaultProxy(urlsplit(seaweed.endpoint).netloc)
    seaweed.make_bucket("whole-runs")
    with pointed_at({**seaweed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}):
        yield proxy
    proxy.close()


def configure(photos: Path, name: str, *overrides: str) -> Config:
    return load_config(
        "toy-robot.yaml",
        [f"subject.photos={photos}", f"storage.uri=s3://whole-runs/{name}", "run_id=run",
         *SETTINGS, *overrides],
    )  # fmt: skip


def test_a_fleet_behind_the_proxy_trains_every_subject(
    proxy: FaultProxy, photos: Path, tmp_path: Path
) -> None:
    uri = "s3://whole-runs/fleet"
    subjects = [
        {"id": f"robot-{k}", "photos": str(photos), "class_noun": "robot"} for k in range(2)
    ]
    settings = [*SETTINGS, f"storage.uri={uri}", "cluster.workers=1", "train.method=lora"]
    file = tmp_path / "subjects.yaml"
    file.write_text(
        json.dumps(
            {"recipe": "toy-robot", "overrides": settings, "parallel": 2, "subjects": subjects}
        )
    )
    proxy.schedule = FaultSchedule(0)
    try:
        entries = run_fleet(load_fleet(file), print)
    finally:
        proxy.schedule = lambda _: None
    assert [(entry.state, entry.note) for entry in entries] == [("done", "")] * 2
    storage, now_s = Store(uri), time.time() + 60
    bundles = [storage.sub(f"runs/robot-{k}/{paths.BUNDLE}") for k in range(2)]
    weights = [
        [f["sha256"] for f in json.loads(bundle.read(manifest.MANIFEST))["files"]
         if f["name"].endswith(".safetensors")]
        for bundle in bundles
    ]  # fmt: skip
    assert weights[0] == weights[1] != []
    assert len([name for name in storage.names("photographs") if name.endswith(".json")]) == 1
    assert len(storage.names(paths.PRIORS)) == 1
    assert all(remove_garbage(storage, i, now_s) for i in find_garbage(storage, now_s, now_s))


@pytest.fixture(scope="module")
def in_ray(proxy: FaultProxy, photos: Path) -> Iterator[None]:
    with session(configure(photos, "none")):
        yield


def outcome_of(storage: Store) -> Outcome:
    """Curve, hash of the weights, and what lies in the storage once garbage is collected.

    Of names that hold a nonce, a time or a hash of both, their beginning.
    """
    run = storage.sub(paths.run("run"))
    files = json.loads(run.read(f"{paths.BUNDLE}/{manifest.MANIFEST}"))["files"]
    hashes = [f["sha256"] for f in files if f["name"].endswith(".safetensors")]
    now_s = time.time() + 60
    for item in find_garbage(storage, now_s, now_s):
        assert remove_garbage(storage, item, now_s)
    names = [
        re.sub(r"[-@][0-9a-f]{12}(/|\.json)|\d{9,}.*", "-", file.name)
        for file in list_files(storage)
        if not re.search(r"/(notices|leases)/|restarts\.json$", file.name)
    ]
    weights = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return read_curve(run), weights, Counter(names)


@pytest.fixture(scope="module")
def undisturbed(proxy: FaultProxy, photos: Path) -> Callable[[str], Outcome]:
    """Outcome of a strategy's run behind a proxy that only forwards, once one has asked for it."""
    outcomes: dict[str, Outcome] = {}

    def find(strategy: str) -> Outcome:
        if strategy not in outcomes:
            config = configure(photos, f"{strategy}-calm", *STRATEGIES[strategy])
            api.train(config)
            outcomes[strategy] = outcome_of(Store(config.storage.uri))
        return outcomes[strategy]

    return find


@pytest.mark.usefixtures("in_ray")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_behind_the_proxy_is_the_run_without(
    strategy: str,
    seed: int,
    proxy: FaultProxy,
    photos: Path,
    undisturbed: Callable[[str], Outcome],
) -> None:
    curve, weights, names = undisturbed(strategy)
    config = configure(photos, f"{strategy}-{seed}", *STRATEGIES[strategy])
    proxy.forget()
    proxy.faults.clear()
    proxy.schedule = FaultSchedule(seed)
    try:
        api.train(config)
    finally:
        proxy.schedule = lambda _: None
    print(len(proxy.requests), "requests", Counter(fault for fault, _ in proxy.faults))
    assert len(proxy.faults) >= len(proxy.requests) // 20 - 1 > 3
    storage = Store(config.storage.uri)
    run = storage.sub(paths.run("run"))
    found_curve, found_weights, found_names = outcome_of(storage)
    assert found_curve == curve
    assert found_weights == weights
    assert found_names == names
    assert committed_steps(run) == [6]
    assert manifest.find_damage(run, find_checkpoint(run, 6).name) is None
