"""Runs of the command line itself, as processes, on real photographs and a real Ray."""

import contextlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.metrics_log import FAILURES, RESTARTS, read_metrics
from tests.fault_proxy import FaultProxy
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at

DREAMBOOTH = str(Path(sys.executable).parent / "dreambooth")
SMALL = [
    "prior.count=6",
    "prior.num_inference_steps=3",
    "train.steps=16",
    "checkpoint.every=5",
    "sample.every=6",
    "sample.num_inference_steps=2",
]


def read_curve(run: Store) -> list[dict[str, Any]]:
    """Metrics of the training itself: without counts of what happened beside it."""
    return [
        {name: value for name, value in step.items() if name not in (RESTARTS, FAILURES)}
        for step in read_metrics(run)
    ]


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(Store(str(self.folder)))

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Metrics of the training itself, whatever happened beside it."""
        return read_curve(Store(str(self.folder)))


def dreambooth(
    *arguments: str, cwd: Path, timeout_s: float = 500
) -> subprocess.CompletedProcess[str]:
    process = start_dreambooth(*arguments, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        kill_tree(process)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def start_dreambooth(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [DREAMBOOTH, *arguments],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def kill_tree(process: "subprocess.Popen[str]") -> None:
    """SIGKILL a command and everything it started, if it still runs."""
    if process.poll() is not None:
        return
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    for child in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(tree, timeout=30)
    process.wait(timeout=30)


def train(cwd: Path, photos: Path, *overrides: str, recipe: str = "toy-robot.yaml") -> Run:
    done = dreambooth("train", recipe, f"subject.photos={photos}", *overrides, cwd=cwd)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    return Run(Path(lines[-1]))


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An object store that tests share, each in a folder of its own."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed") / "data")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def fault_proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    """Between the object store and what this test does or starts: counts, and goes wrong by the
    schedule that a test gives it. None at first.
    """
    proxy = FaultProxy(urlsplit(seaweed.endpoint).netloc)
    with pointed_at({**seaweed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}):
        yield proxy
    proxy.close()


@pytest.fixture
def proxied_uri(seaweed: Seaweed, fault_proxy: FaultProxy) -> str:
    """A storage of the test's own behind the proxy."""
    return f"{seaweed.make_bucket('proxied')}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One storage for all runs: equal class images are drawn once, as people would have it."""
    return f"storage.uri={tmp_path_factory.mktemp('storage')}"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photos: Path, storage: str) -> Run:
    """Two workers, 16 steps, nothing goes wrong."""
    return train(tmp_path_factory.mktemp("undisturbed"), photos, storage, *SMALL)


@dataclass
class Background:
    """A train command in the background."""

    process: subprocess.Popen[str]
    folder: Path

    def wait_for_step(self, step: int, timeout_s: float = 300) -> None:
        """Wait until the metrics show a step."""
        self.wait_until(lambda: self._step() >= step, f"step {step}", timeout_s)

    def wait_until(self, met: Callable[[], bool], what: str, timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while not met():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, f"{what} not reached in {timeout_s} s"
            time.sleep(0.02)  # the interval of a poll, not a wait for time to pass

    def _step(self) -> int:
        metrics = Run(self.folder).metrics if self.folder.exists() else []
        return int(metrics[-1]["step"]) if metrics else 0

    def train_workers(self) -> list[psutil.Process]:
        """The training workers of this run alone."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [c for c in children if "RayTrainWorker" in " ".join(_cmdline(c))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.fixture
def in_background(
    tmp_path: Path, photos: Path, storage: str
) -> Iterator[Callable[..., Background]]:
    started: list[Background] = []

    def start(*overrides: str) -> Background:
        run_id = uuid.uuid4().hex
        process = start_dreambooth(
            "train", "toy-robot.yaml", f"subject.photos={photos}", f"run_id={run_id}", storage,
            *overrides, cwd=tmp_path,
        )  # fmt: skip
        runs = Path(storage.removeprefix("storage.uri=")) / "runs"
        started.append(Background(process, runs / run_id))
        return started[-1]

    yield start
    for background in started:
        kill_tree(background.process)
