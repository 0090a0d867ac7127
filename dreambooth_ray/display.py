"""Progress for people, on standard error: bars on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.metrics_follower import MetricsFollower

LINE_INTERVAL_S = 5.0
# Between looks at metrics in an object store, which counts requests.
_REMOTE_INTERVAL_S = 15.0


class ProgressMeter(Protocol):
    """Shows one stage."""

    def show(self, step: int, text: str) -> None:
        """Advance to `step`."""


class QuietDisplay:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def show_prior_progress(self, num_done: int, total: int) -> None:
        """Nothing."""

    def show_training_progress(self, run: Store, config: Config, work: Callable[[], None]) -> None:
        """Do `work`."""
        work()


class TrainingDisplay:
    """The display of the command line."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._board = ProgressBoard(self._console)
        self._priors = self._board.add_stage("class images")

    def say(self, text: str) -> None:
        """One line for the person."""
        self._console.print(text, markup=False, soft_wrap=True)

    def show_prior_progress(self, num_done: int, total: int) -> None:
        """Class images so far."""
        self._priors(num_done, total)

    def show_training_progress(self, run: Store, config: Config, work: Callable[[], None]) -> None:
        """Do `work` while a thread shows what the run's metrics say."""
        training_ended = threading.Event()
        metrics_thread = threading.Thread(
            target=self._show_metrics, args=(run, config, training_ended), daemon=True
        )
        self.say(f"training {config.train.steps} steps on {describe_workers(config)}")
        metrics_thread.start()
        try:
            work()
        finally:
            training_ended.set()
            metrics_thread.join()

    def _show_metrics(self, run: Store, config: Config, training_ended: threading.Event) -> None:
        poll_interval_s = 0.5 if run.is_local else _REMOTE_INTERVAL_S
        if self._console.is_terminal:
            with self._board.show_during() as progress:
                self._poll_metrics(
                    run,
                    config,
                    training_ended,
                    poll_interval_s,
                    _BarMeter(progress, config.train.steps),
                )
        else:
            self._poll_metrics(
                run,
                config,
                training_ended,
                poll_interval_s,
                _LineMeter(self.say, config.train.steps),
            )

    def _poll_metrics(
        self,
        run: Store,
        config: Config,
        training_ended: threading.Event,
        poll_interval_s: float,
        meter: ProgressMeter,
    ) -> None:
        image_rate, metrics_follower = ImageRate(), MetricsFollower(run)
        while True:
            is_last_poll = training_ended.wait(poll_interval_s)
            latest_metrics = metrics_follower.read_latest_metrics()
            if latest_metrics is not None:
                images_per_second = image_rate.update(
                    time.monotonic(), latest_metrics["images_seen"]
                )
                meter.show(
                    latest_metrics["step"],
                    describe_step_losses(latest_metrics, images_per_second, config.prior),
                )
            if is_last_poll:
                return


def describe_workers(config: Config) -> str:
    """How many are to train, in words."""
    worker_range = config.cluster.span
    worker_count_text = describe_count(worker_range.max, "worker")
    return (
        worker_count_text
        if worker_range.min == worker_range.max
        else f"{worker_range.min} to {worker_count_text}"
    )


def describe_step_losses(record: dict[str, Any], images_s: float, prior: PriorConfig) -> str:
    """The loss and its parts, with their weights, and the speed, as text."""
    # By what a record has: a run may have gone on with another prior.kind.
    loss_weights = {"class": prior.weight, "output": prior.output_weight}
    is_output_preservation = prior.kind == "output" and "output_loss" not in record
    losses_by_name = {"output" if is_output_preservation else "class": record["prior_loss"]}
    if "output_loss" in record:
        losses_by_name["output"] = record["output_loss"]
    loss_terms = [f"subject {record['instance_loss']:.4f}"]
    for loss_name, loss in losses_by_name.items():
        loss_weight = loss_weights[loss_name]
        loss_terms.append(
            f"{'' if loss_weight == 1 else f'{loss_weight:g} x '}{loss_name} {loss:.4f}"
        )
    return f"loss {record['loss']:.4f} = {' + '.join(loss_terms)}, {images_s:.1f} images/s"


class ImageRate:
    """Images a second since the first update."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def update(self, at_s: float, images: int) -> float:
        """Mean rate up to now; 0 at the first update, and starts anew after a rewind."""
        if self._first is None or images < self._first[1]:
            self._first = at_s, images
        started_s, first_image_count = self._first
        return (images - first_image_count) / (at_s - started_s) if at_s > started_s else 0.0


class _BarMeter:
    def __init__(self, bar: Progress, total: int) -> None:
        self._bar, self._task = bar, bar.add_task("waiting for workers", total=total)
        self._shown = 0

    def show(self, step: int, text: str) -> None:
        if step < self._shown:
            # Workers were restarted: the time left is told from their steps alone.
            self._bar.reset(self._task)
        self._shown = step
        self._bar.update(self._task, completed=step, description=text)


class _LineMeter:
    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say, self._total = say, total
        self._printed_at_s, self._shown = 0.0, 0
        self._first: tuple[float, int] | None = None

    def show(self, step: int, text: str) -> None:
        now_s = time.monotonic()
        if self._first is None or step < self._shown:
            # The beginning, or of a restart: the time left is told from the steps since.
            self._first, self._shown = (now_s, step), step - 1
        if step == self._shown or (
            now_s - self._printed_at_s < LINE_INTERVAL_S and step < self._total
        ):
            return
        self._printed_at_s, self._shown = now_s, step
        started_s, first_step = self._first
        time_left_text = self._format_time_left(step, step - first_step, now_s - started_s)
        self._say(f"step {step}/{self._total} {text}{time_left_text}")

    def _format_time_left(self, step: int, num_steps: int, seconds: float) -> str:
        """Nothing until a step has been timed."""
        return f", {(self._total - step) * seconds / num_steps:.0f} s left" if num_steps else ""


def _make_progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
    )


class ProgressBoard:
    """One set of bars on a terminal, shown while any of its stages runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = _make_progress_bar(console)
        self._users, self._lock = 0, threading.Lock()

    @contextmanager
    def show_during(self) -> Iterator[Progress]:
        """The bars, shown for the length of the block."""
        progress = self.show()
        try:
            yield progress
        finally:
            self.stop_bars_after_last_user()

    def show(self) -> Progress:
        """Show the bars until `stop_bars_after_last_user`."""
        with self._lock:
            self._users += 1
            self._bars.start()
        return self._bars

    def stop_bars_after_last_user(self) -> None:
        """Leave the bars as they stand once nobody uses them."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._bars.stop()

    def add_stage(self, label: str) -> "ProgressStage":
        """A stage that is shown among the others."""
        return ProgressStage(label, self)


class ProgressStage:
    """Progress of a stage of known length: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, label: str, board: ProgressBoard | None = None) -> None:
        self._label = label
        self._board = board or ProgressBoard(Console(stderr=True, highlight=False))
        self._task: tuple[Progress, TaskID] | None = None

    def __call__(self, num_done: int, total: int) -> None:
        """Show that `num_done` of `total` are there."""
        if not self._board.console.is_terminal:
            self._board.console.print(f"{self._label} {num_done}/{total}", markup=False)
            return
        if self._task is None:
            progress = self._board.show()
            self._task = progress, progress.add_task(self._label, total=total)
        progress, progress_task = self._task
        progress.update(progress_task, completed=num_done)
        if num_done >= total:
            self._board.stop_bars_after_last_user()
            self._task = None
