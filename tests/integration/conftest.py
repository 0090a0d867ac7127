"""Runs of the command line itself, as processes, on real photographs and a real Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.journal import read_metrics

DREAMBOOTH = str(Path(sys.executable).parent / "dreambooth")
SMALL = [
    "prior.count=6",
    "prior.num_inference_steps=3",
    "train.steps=16",
    "checkpoint.every=5",
    "sample.every=6",
    "sample.num_inference_steps=2",
]


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(Store(str(self.folder)))


def dreambooth(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DREAMBOOTH, *arguments], cwd=cwd, text=True, capture_output=True, check=False, timeout=500
    )


def train(cwd: Path, photos: Path, *overrides: str, recipe: str = "toy-robot.yaml") -> Run:
    done = dreambooth("train", recipe, f"subject.photos={photos}", *overrides, cwd=cwd)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    return Run(Path(lines[-1]))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Run:
    """Two workers, 16 steps, nothing goes wrong."""
    return train(tmp_path_factory.mktemp("undisturbed"), photos, *SMALL)


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

    def kill_tree(self) -> None:
        """SIGKILL the command and everything it started."""
        tree = [*psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(signal.SIGKILL)
        for child in tree:
            if child.is_running():
                child.kill()
        psutil.wait_procs(tree, timeout=30)
        self.process.wait(timeout=30)


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.fixture
def in_background(tmp_path: Path, photos: Path) -> Iterator[Callable[..., Background]]:
    started: list[Background] = []

    def start(*overrides: str) -> Background:
        process = subprocess.Popen(
            [
                DREAMBOOTH,
                "train",
                "toy-robot.yaml",
                f"subject.photos={photos}",
                "run_id=r",
                *overrides,
            ],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ},
        )
        started.append(Background(process, tmp_path / "out" / "runs" / "r"))
        return started[-1]

    yield start
    for background in started:
        if background.process.poll() is None:
            background.kill_tree()
