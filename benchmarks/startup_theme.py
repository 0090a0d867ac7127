"""Theme `startup`: from `dreambooth submit` to the first step, and to a replica's first image.

The cluster is a Ray head of this machine with its Jobs API, which runs already; submitted is
as a user does it, with a preflight and the code of this installation. A replica is cold when the
endpoint is deployed anew; a subject when nobody has asked for it.
"""

import contextlib
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray.serve
import requests
import torch

from benchmarks.callers import ask
from benchmarks.measure import MOST_SPREAD, quantiles
from benchmarks.serve_theme import PORT, URLS
from benchmarks.served_subjects import make_subjects
from benchmarks.theme import Setting
from cluster.cluster_registry import find_cluster
from cluster.dashboard import Dashboard
from cluster.session import connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import CapacityError, DreamBoothError
from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.metrics_log import read_metrics
from serve.app import build

FIRST_STEP_BAR_S, LIMIT_S = 25.0, 120.0
# Seconds to the first step, and to what is before it.
Start = tuple[float, dict[str, float]]
DREAMBOOTH = str(Path(sys.executable).with_name("dreambooth"))


def measure(setting: Setting) -> dict[str, Any]:
    """Submitting, a replica, subjects.

    A smoke profile submits once, without class images, and has no bar.
    """
    torch.set_num_threads(1)
    class_images = setting.pick(0, 8)
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name, ExitStack() as head:
        folder, storage = Path(name), Path(name) / "served"
        clusters = head.enter_context(_head(folder))
        # What replicas need comes up beside the head, and waits while runs are submitted.
        with connection(ClusterConfig(), 4, is_bare=True):
            served = list(make_subjects(storage, setting.model))[: setting.pick(2, 4)]
            first, *later = _submit(folder, clusters, class_images, setting.pick(1, 4))
            head.close()
            replicas, cold, warm = _serve(storage, setting.model, served, setting.pick(1, 3))
    found = "with its class images" if class_images else "without class images"
    cases = [_submitted(f"a cluster's first run, {found}", [first])]
    if later:
        cases.append(_submitted("class images made before", later, FIRST_STEP_BAR_S))
    return {
        "cases": [
            *cases,
            case("a new replica's first image", replicas),
            case("a new subject's first image", cold),
            case("a known subject's image", warm),
        ],
        "configuration": {
            "workers": 1, "preflight": True, "code": "tree", "class_images": class_images,
            "picture": "2 steps of the toy world",
        },
    }  # fmt: skip


def case(name: str, seconds: list[float], bar_s: float | None = None) -> dict[str, Any]:
    """A case of seconds, with whether its median is within its bar."""
    found = quantiles(seconds)
    record: dict[str, Any] = {
        "case": name, "peer": "the clock", "unit": "s", "seconds": found,
        "each": [round(s, 2) for s in seconds],
    }  # fmt: skip
    if bar_s is not None:
        record |= {"bar_s": bar_s, "reached": bool(found["median"] < bar_s)}
    if found["p95"] > MOST_SPREAD * found["p5"]:
        record["unsteady"] = f"p95 is {found['p95'] / found['p5']:.2f} times p5"
    return record


def _submitted(name: str, starts: list[Start], bar_s: float | None = None) -> dict[str, Any]:
    found = case(f"submit to first step, {name}", [seconds for seconds, _ in starts], bar_s)
    stages = [stages for _, stages in starts]
    medians = {key: round(statistics.median(s[key] for s in stages), 1) for key in stages[0]}
    return found | {"until_s": medians}


def _submit(folder: Path, clusters: Path, class_images: int, times: int) -> list[Start]:
    """Seconds from the command's start to the first step in the run's journal, and to what is
    before it, by run.

    The first run draws the class images and starts what a cluster starts once.
    """
    write_photographs(folder / "photos", 7, "robot", 5, 256)
    storage, starts = Store(str(folder / "storage")), list[Start]()
    _wait(partial(_has_room, Dashboard(find_cluster("bench", clusters))))
    for k in range(times):
        if k:
            _wait(partial(is_finished, storage.sub(paths.run(f"run-{k - 1}"))))
        run = storage.sub(paths.run(f"run-{k}"))
        began, today = time.monotonic(), time.time()
        done = subprocess.run(
            [
                DREAMBOOTH, "submit", "toy-robot.yaml", "--cluster", "bench",
                "--clusters", str(clusters), f"subject.photos={folder / 'photos'}",
                f"storage.uri={storage.uri}", f"run_id=run-{k}", f"prior.count={class_images}",
                "prior.num_inference_steps=4", "train.steps=30", "sample.every=0",
                "cluster.workers=1",
            ],
            check=False, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        if done.returncode:
            raise DreamBoothError(f"dreambooth submit ended with {done.returncode}: {done.stderr}")
        _wait(partial(read_metrics, run))
        seconds = time.monotonic() - began
        starts.append((seconds, {name: at - today for name, at in _traces(run)}))
        print(f"first step after {seconds:.2f} s", starts[-1][1], file=sys.stderr)
    return starts


def _traces(run: Store) -> Iterator[tuple[str, float]]:
    """What a start leaves in its run one after the other, and when, in seconds of the epoch.

    A run without class images writes down no use of any.
    """
    for name, file in (
        ("preflight done, the run written down", paths.CONFIG),
        ("the job's process up, inputs looked at", paths.PRIOR_USE),
        ("Ray Train's controller up", f"{paths.RAY_TRAIN}/.validate_storage_marker"),
    ):
        with contextlib.suppress(FileNotFoundError):
            yield name, run.local_path(file).stat().st_mtime


@contextmanager
def _head(folder: Path) -> Iterator[Path]:
    """A Ray head with its Jobs API, coming up; yields the file that names it."""
    gcs, jobs, client, agent = (_free_port() for _ in range(4))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        f"--port={gcs}", f"--dashboard-port={jobs}", f"--ray-client-server-port={client}",
        # Its usual port may be another Ray's of this machine: the head would take no jobs.
        f"--dashboard-agent-listen-port={agent}", "--dashboard-host=127.0.0.1", "--num-cpus=4",
        "--disable-usage-stats", f"--temp-dir={folder / 'r'}",
    ]  # fmt: skip
    address, file = f"http://127.0.0.1:{jobs}", folder / "clusters.yaml"
    token = secrets.token_hex(32)
    file.write_text(f'bench: {{address: "{address}", token: {token}}}\n')
    # Jobs of the cluster are to find this installation's Python, wherever it is.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with (folder / "head.log").open("w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
    process = psutil.Process(started.pid)
    try:
        yield file
    finally:
        tree = [process, *process.children(recursive=True)]
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, timeout=30)
        started.wait()


def _serve(
    storage: Path, model: str, names: list[str], times: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds to a new replica's first image, and to subjects' first and second ones."""
    given = {
        "storage": {"uri": str(storage)},
        "models": {"base": model},
        "replicas": {"minimum": 1, "maximum": 1},
    }
    config = ServeConfig.model_validate(given)
    replicas, cold, warm = list[float](), list[float](), list[float]()
    for k in range(times):
        if k:
            ray.serve.shutdown()
        ray.serve.start(http_options={"port": PORT})
        began = time.monotonic()
        ray.serve.run(build(config), name="dreambooth")
        _image("base")
        replicas.append(time.monotonic() - began)
        for name in names:
            cold.append(_image(name))
            warm.append(_image(name))
    return replicas, cold, warm


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(met: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not met():
        if time.monotonic() > deadline:
            raise DreamBoothError(f"what was started came to nothing within {LIMIT_S:.0f} s")
        time.sleep(0.05)


def _has_room(dashboard: Dashboard) -> bool:
    """Whether the head answers and its host has been counted, which comes a little later."""
    try:
        return dashboard.capacity().cpus > 0
    except (CapacityError, requests.RequestException, KeyError):
        return False


def _image(model: str) -> float:
    """Seconds to an image of two steps; asked again while the endpoint finds its feet."""
    body = {"model": model, "prompt": "a robot", "seed": 0, "num_inference_steps": 2}
    began = time.monotonic()
    while True:
        try:
            ask(URLS["ours"], body)
            return time.monotonic() - began
        except urllib.error.HTTPError as error:
            known = error.code >= 500 or error.code == 404
            if not known or time.monotonic() - began > LIMIT_S:
                raise
        time.sleep(0.05)
