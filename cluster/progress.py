"""Live progress of a run on a cluster, from its storage and its job; outages are waited out."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import requests

from cluster.ray_jobs import RunJob
from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.schema import Config
from dreambooth_ray.display import ImageRate, describe_step_losses, describe_workers
from dreambooth_ray.errors import CapacityError, StorageError
from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.metrics_follower import MetricsFollower
from dreambooth_ray.training.metrics_log import RESTARTS
from dreambooth_ray.training.worker_messages import read_new_messages

INTERVAL_S = 3.0
_SILENCES = (requests.RequestException, ConnectionError, CapacityError, StorageError, OSError)


@dataclass(frozen=True)
class RunProgress:
    """How a run stands. remaining_s and cost are None until a speed is known."""

    step: int
    steps: int
    text: str
    checkpoint: int
    remaining_s: float | None
    cost: float | None

    def line(self) -> str:
        """One line for people."""
        line_parts = [f"step {self.step}/{self.steps}"] + ([self.text] if self.text else [])
        line_parts.append(f"checkpoint at {self.checkpoint}")
        if self.remaining_s is not None:
            line_parts.append(f"{_format_duration(self.remaining_s)} left")
        if self.cost is not None:
            line_parts.append(f"about {self.cost:.2f} more to pay")
        return ", ".join(line_parts)


class RunProgressReader:
    """How a run stands, look by look: each asks storage for what is new."""

    def __init__(self, run: Store, config: Config, price_an_hour: float | None) -> None:
        self._run, self._config, self._price_an_hour = run, config, price_an_hour
        self._metrics, self._rate = MetricsFollower(run), ImageRate()
        self._checkpoint = 0

    def read(self) -> RunProgress:
        """Read how the run stands now."""
        config, latest_metrics = self._config, self._metrics.read_latest_metrics()
        self._checkpoint = max(committed_steps(self._run, self._checkpoint) or [self._checkpoint])
        if latest_metrics is None:
            return RunProgress(0, config.train.steps, "", self._checkpoint, None, None)
        images_per_second = self._rate.update(time.monotonic(), latest_metrics["images_seen"])
        images_left = (config.train.steps - latest_metrics["step"]) * config.total_images_per_step
        remaining_s = images_left / images_per_second if images_per_second > 0 else None
        remaining_cost = None
        if self._price_an_hour is not None and remaining_s is not None:
            remaining_cost = self._price_an_hour * remaining_s / 3600
        step_text = (
            describe_step_losses(latest_metrics, images_per_second, config.prior)
            + f", {describe_workers(config)}"
        )
        if restarts := latest_metrics.get(RESTARTS):
            step_text += f", restarted {describe_count(int(restarts), 'time')}"
        return RunProgress(
            latest_metrics["step"],
            config.train.steps,
            step_text,
            self._checkpoint,
            remaining_s,
            remaining_cost,
        )


class RunJobs(Protocol):
    """Where runs are: a cluster of Ray's, or Kubernetes."""

    def state(self, job: RunJob) -> str:
        """How a job stands now, in a word; for one that failed, with the reason."""

    def is_active(self, job: RunJob) -> bool:
        """Whether a job waits or runs."""

    def config(self, job: RunJob) -> Config:
        """What the run was sent with."""


def watch_run(jobs: RunJobs, job: RunJob, price: float | None, say: Callable[[str], None]) -> str:
    """Say how a run goes until its job ends; returns how it ended.

    A cluster or a store that does not answer is asked again: the run goes on without us.
    """
    run_store, seen_messages = Store(job.run_uri), set[str]()
    progress_reader, last_progress_line = RunProgressReader(run_store, jobs.config(job), price), ""
    for _ in _tick_every_interval():
        end_state = outcome = ""
        try:
            end_state = "" if jobs.is_active(job) else jobs.state(job)
            # Restarts and warnings, from the run's beginning on.
            for worker_message in read_new_messages(run_store, seen_messages):
                say(worker_message)
            progress_line = progress_reader.read().line()
            if end_state:
                outcome = "finished" if is_finished(run_store) else end_state
        except _SILENCES:
            progress_line = "no answer; the run goes on, asking again"
            if end_state:
                progress_line, outcome = "no answer from storage", end_state
        if progress_line != last_progress_line:
            last_progress_line = progress_line
            say(progress_line)
        if outcome:
            return outcome
    raise AssertionError("polls have no end")


def _tick_every_interval() -> Iterator[None]:
    while True:
        yield
        time.sleep(INTERVAL_S)


def _format_duration(seconds: float) -> str:
    minutes, rest_seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest_seconds} s"
