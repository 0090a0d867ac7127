"""A worker of `dreambooth train` is killed; how long until the run is past where it was."""

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.measure import MAX_SPREAD, compute_quantiles
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.metrics_log import read_metrics

EVERY, LIMIT_S = 20, 240.0


def measure_recovery(
    folder: Path, storage: str, kills: int, count: int, class_images: int
) -> dict[str, Any]:
    """Seconds from SIGKILL to the first step that the run had not taken before, by kill.

    count: of workers, of which one is killed
    """
    write_photographs(folder / "photos", 7, "robot", 5, 256)
    run_store, recovery_times_s, repeated_steps = Store(storage).sub(paths.run("killed")), [], []
    overrides = [
        "train.steps=100000", f"checkpoint.every={EVERY}", f"cluster.workers={count}",
        f"prior.count={class_images}",
    ]  # fmt: skip
    with start_training(folder, storage, "killed", *overrides) as process:
        for _ in range(kills):
            last_checkpoint_step = (committed_steps(run_store) or [0])[-1]
            wait_for(process, partial(_has_newer_checkpoint, run_store, last_checkpoint_step))
            wait_for(process, lambda: read_last_step(run_store) % EVERY >= EVERY // 2)
            step_at_kill, newest_checkpoint_step = (
                read_last_step(run_store),
                committed_steps(run_store)[-1],
            )
            random.choice(find_workers(process)).kill()
            start_s = time.monotonic()
            wait_for(process, partial(_is_past_step, run_store, step_at_kill))
            recovery_times_s.append(time.monotonic() - start_s)
            repeated_steps.append(step_at_kill - newest_checkpoint_step)
    recovery_quantiles_s = compute_quantiles(recovery_times_s)
    case = {
        "case": f"one of {count} workers killed, until past where it was", "peer": "undisturbed",
        "class_images": class_images, "unit": "s", "seconds": recovery_quantiles_s,
        "each": [round(s, 2) for s in recovery_times_s],
        "steps_made_again": repeated_steps,
    }  # fmt: skip
    if recovery_quantiles_s["p95"] > MAX_SPREAD * recovery_quantiles_s["p5"]:
        case["unsteady"] = (
            f"p95 is {recovery_quantiles_s['p95'] / recovery_quantiles_s['p5']:.2f} times p5"
        )
    return case


@contextmanager
def start_training(
    folder: Path, storage: str, name: str, *overrides: str
) -> Iterator[psutil.Process]:
    """A process of `dreambooth train`, ended with everything below it."""
    command = [
        str(Path(sys.executable).with_name("dreambooth")), "train", "toy-robot.yaml",
        f"subject.photos={folder / 'photos'}", f"storage.uri={storage}", f"run_id={name}",
        "sample.every=0", "prior.count=8", "prior.num_inference_steps=4", *overrides,
    ]  # fmt: skip
    with (folder / "log").open("w") as log_file:
        popen = subprocess.Popen(command, stdout=log_file, stderr=log_file, cwd=folder)
    process = psutil.Process(popen.pid)
    try:
        yield process
    finally:
        process_tree = [process, *process.children(recursive=True)] if popen.poll() is None else []
        for tree_process in process_tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                tree_process.kill()
        psutil.wait_procs(process_tree, timeout=30)
        popen.wait()


def _has_newer_checkpoint(run: Store, checkpoint: int) -> bool:
    return (committed_steps(run) or [0])[-1] > checkpoint


def _is_past_step(run: Store, step: int) -> bool:
    return read_last_step(run) > step


def read_last_step(run: Store) -> int:
    """The newest step in its metrics, 0 where there is none."""
    metric_records = read_metrics(run)
    return int(metric_records[-1]["step"]) if metric_records else 0


def find_workers(process: psutil.Process) -> list[psutil.Process]:
    """The training workers below it."""
    worker_processes = []
    for child_process in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(child_process.cmdline()):
                worker_processes.append(child_process)
    return worker_processes


def wait_for(
    process: psutil.Process, condition: Callable[[], bool], limit_s: float = LIMIT_S
) -> None:
    """raises DreamBoothError if it ends before, or takes too long."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if not process.is_running() or time.monotonic() > deadline:
            raise DreamBoothError(f"the run that is killed came to nothing within {limit_s:.0f} s")
        time.sleep(0.05)
