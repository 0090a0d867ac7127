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

from benchmarks.callers import post_json_request
from benchmarks.measure import MAX_SPREAD, compute_quantiles
from benchmarks.serve_theme import PORT, URLS
from benchmarks.served_subjects import make_subjects
from benchmarks.theme import BenchmarkSettings
from cluster.cluster_registry import find_cluster
from cluster.dashboard import Dashboard
from cluster.session import ray_connection
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
SubmitTime = tuple[float, dict[str, float]]
DREAMBOOTH = str(Path(sys.executable).with_name("dreambooth"))


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """Submitting, a replica, subjects.

    A smoke profile submits once, without class images, and has no bar.
    """
    torch.set_num_threads(1)
    num_class_images = setting.pick(0, 8)
    with (
        tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder,
        ExitStack() as head_stack,
    ):
        folder, storage_folder = Path(temp_folder), Path(temp_folder) / "served"
        clusters_file = head_stack.enter_context(_start_head(folder))
        # What replicas need comes up beside the head, and waits while runs are submitted.
        with ray_connection(ClusterConfig(), 4, is_bare=True):
            served_names = list(make_subjects(str(storage_folder), setting.model))[
                : setting.pick(2, 4)
            ]
            first_submit_time, *later_submit_times = _measure_submits(
                folder, clusters_file, num_class_images, setting.pick(1, 4)
            )
            head_stack.close()
            replica_start_times_s, cold_times_s, warm_times_s = _measure_serving(
                storage_folder, setting.model, served_names, setting.pick(1, 3)
            )
    class_images_text = "with its class images" if num_class_images else "without class images"
    cases = [
        _summarize_submit_times(f"a cluster's first run, {class_images_text}", [first_submit_time])
    ]
    if later_submit_times:
        cases.append(
            _summarize_submit_times(
                "class images made before", later_submit_times, FIRST_STEP_BAR_S
            )
        )
    return {
        "cases": [
            *cases,
            summarize_case_seconds("a new replica's first image", replica_start_times_s),
            summarize_case_seconds("a new subject's first image", cold_times_s),
            summarize_case_seconds("a known subject's image", warm_times_s),
        ],
        "configuration": {
            "workers": 1, "preflight": True, "code": "tree", "class_images": num_class_images,
            "picture": "2 steps of the toy world",
        },
    }  # fmt: skip


def summarize_case_seconds(
    name: str, seconds: list[float], bar_s: float | None = None
) -> dict[str, Any]:
    """A case of seconds, with whether its median is within its bar."""
    seconds_quantiles = compute_quantiles(seconds)
    record: dict[str, Any] = {
        "case": name, "peer": "the clock", "unit": "s", "seconds": seconds_quantiles,
        "each": [round(s, 2) for s in seconds],
    }  # fmt: skip
    if bar_s is not None:
        record |= {"bar_s": bar_s, "reached": bool(seconds_quantiles["median"] < bar_s)}
    if seconds_quantiles["p95"] > MAX_SPREAD * seconds_quantiles["p5"]:
        record["unsteady"] = (
            f"p95 is {seconds_quantiles['p95'] / seconds_quantiles['p5']:.2f} times p5"
        )
    return record


def _summarize_submit_times(
    name: str, submit_times: list[SubmitTime], bar_s: float | None = None
) -> dict[str, Any]:
    record = summarize_case_seconds(
        f"submit to first step, {name}", [seconds for seconds, _ in submit_times], bar_s
    )
    stage_times = [stages for _, stages in submit_times]
    stage_medians_s = {
        key: round(statistics.median(s[key] for s in stage_times), 1) for key in stage_times[0]
    }
    return record | {"until_s": stage_medians_s}


def _measure_submits(
    folder: Path, clusters_file: Path, class_images: int, times: int
) -> list[SubmitTime]:
    """Seconds from the command's start to the first step in the run's metrics log, and to
    what is before it, by run.

    The first run generates the class images and starts what a cluster starts once.
    """
    write_photographs(folder / "photos", 7, "robot", 5, 256)
    storage, submit_times = Store(str(folder / "storage")), list[SubmitTime]()
    _wait_for(partial(_is_head_ready, Dashboard(find_cluster("bench", clusters_file))))
    for k in range(times):
        if k:
            _wait_for(partial(is_finished, storage.sub(paths.run(f"run-{k - 1}"))))
        run_store = storage.sub(paths.run(f"run-{k}"))
        start_s, start_epoch_s = time.monotonic(), time.time()
        completed_process = subprocess.run(
            [
                DREAMBOOTH, "submit", "toy-robot.yaml", "--cluster", "bench",
                "--clusters", str(clusters_file), f"subject.photos={folder / 'photos'}",
                f"storage.uri={storage.uri}", f"run_id=run-{k}", f"prior.count={class_images}",
                "prior.num_inference_steps=4", "train.steps=30", "sample.every=0",
                "cluster.workers=1",
            ],
            check=False, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        if completed_process.returncode:
            raise DreamBoothError(
                f"dreambooth submit ended with {completed_process.returncode}: "
                f"{completed_process.stderr}"
            )
        _wait_for(partial(read_metrics, run_store))
        first_step_s = time.monotonic() - start_s
        submit_times.append(
            (
                first_step_s,
                {name: epoch_s - start_epoch_s for name, epoch_s in _read_stage_times(run_store)},
            )
        )
        print(f"first step after {first_step_s:.2f} s", submit_times[-1][1], file=sys.stderr)
    return submit_times


def _read_stage_times(run: Store) -> Iterator[tuple[str, float]]:
    """What a start leaves in its run one after the other, and when, in seconds of the epoch.

    A run without class images writes down no use of any.
    """
    for stage_name, stage_file in (
        ("preflight done, the run written down", paths.CONFIG),
        ("the job's process up, inputs looked at", paths.PRIOR_USE),
        ("Ray Train's controller up", f"{paths.RAY_TRAIN}/.validate_storage_marker"),
    ):
        with contextlib.suppress(FileNotFoundError):
            yield stage_name, run.local_path(stage_file).stat().st_mtime


@contextmanager
def _start_head(folder: Path) -> Iterator[Path]:
    """A Ray head with its Jobs API, coming up; yields the file that names it."""
    gcs_port, jobs_port, client_port, agent_port = (_free_port() for _ in range(4))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        f"--port={gcs_port}", f"--dashboard-port={jobs_port}",
        f"--ray-client-server-port={client_port}",
        # Its usual port may be another Ray's of this machine: the head would take no jobs.
        f"--dashboard-agent-listen-port={agent_port}", "--dashboard-host=127.0.0.1", "--num-cpus=4",
        "--disable-usage-stats", f"--temp-dir={folder / 'r'}",
    ]  # fmt: skip
    dashboard_address, clusters_file = f"http://127.0.0.1:{jobs_port}", folder / "clusters.yaml"
    auth_token = secrets.token_hex(32)
    clusters_file.write_text(f'bench: {{address: "{dashboard_address}", token: {auth_token}}}\n')
    # Jobs of the cluster are to find this installation's Python, wherever it is.
    executable_search_path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    environment = {
        "PATH": executable_search_path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": auth_token,
    }
    with (folder / "head.log").open("w") as log_file:
        popen = subprocess.Popen(
            command, stdout=log_file, stderr=log_file, env=os.environ | environment
        )
    head_process = psutil.Process(popen.pid)
    try:
        yield clusters_file
    finally:
        process_tree = [head_process, *head_process.children(recursive=True)]
        for tree_process in process_tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                tree_process.kill()
        psutil.wait_procs(process_tree, timeout=30)
        popen.wait()


def _measure_serving(
    storage: Path, model: str, subject_names: list[str], times: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds to a new replica's first image, and to subjects' first and second ones."""
    serve_settings = {
        "storage": {"uri": str(storage)},
        "models": {"base": model},
        "replicas": {"minimum": 1, "maximum": 1},
    }
    config = ServeConfig.model_validate(serve_settings)
    replica_start_times_s, cold_times_s, warm_times_s = list[float](), list[float](), list[float]()
    for k in range(times):
        if k:
            ray.serve.shutdown()
        ray.serve.start(http_options={"port": PORT})
        start_s = time.monotonic()
        ray.serve.run(build(config), name="dreambooth")
        _time_image_request("base")
        replica_start_times_s.append(time.monotonic() - start_s)
        for subject_name in subject_names:
            cold_times_s.append(_time_image_request(subject_name))
            warm_times_s.append(_time_image_request(subject_name))
    return replica_start_times_s, cold_times_s, warm_times_s


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise DreamBoothError(f"what was started came to nothing within {LIMIT_S:.0f} s")
        time.sleep(0.05)


def _is_head_ready(dashboard: Dashboard) -> bool:
    """Whether the head answers and its host has been counted, which comes a little later."""
    try:
        return dashboard.capacity().cpus > 0
    except (CapacityError, requests.RequestException, KeyError):
        return False


def _time_image_request(model: str) -> float:
    """Seconds to an image of two steps; sent again while the endpoint starts."""
    request_body = {"model": model, "prompt": "a robot", "seed": 0, "num_inference_steps": 2}
    start_s = time.monotonic()
    while True:
        try:
            post_json_request(URLS["ours"], request_body)
            return time.monotonic() - start_s
        except urllib.error.HTTPError as error:
            is_retryable = error.code >= 500 or error.code == 404
            if not is_retryable or time.monotonic() - start_s > LIMIT_S:
                raise
        time.sleep(0.05)
