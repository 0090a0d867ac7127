"""Progress for people, on standard error: bars on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable
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

from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.metrics_log import read_metrics

LINE_INTERVAL_S = 5.0


class Meter(Protocol):
    """Shows one stage."""

    def show(self, done: int, text: str) -> None:
        """Advance to `done`."""


class TrainingDisplay:
    """The display of the command line."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._board = Board(self._console)
        self._priors = self._board.stage("class images")

    def say(self, text: str) -> None:
        """One line for the person."""
        self._console.print(text, markup=False, soft_wrap=True)

    def priors(self, done: int, total: int) -> None:
        """Class images so far."""
        self._priors(done, total)

    def training(self, run: Store, config: Config, work: Callable[[], None]) -> None:
        """Do `work` while a thread shows what the run's metrics say."""
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(run, config, ended), daemon=True)
        self.say(f"training {config.train.steps} steps on {_workers(config)} workers")
        watcher.start()
        try:
            work()
        finally:
            ended.set()
            watcher.join()

    def _watch(self, run: Store, config: Config, ended: threading.Event) -> None:
        interval_s = 0.5 if run.is_local else 5.0
        if self._console.is_terminal:
            with self._board as bar:
                self._follow(run, config, ended, interval_s, _BarMeter(bar, config.train.steps))
        else:
            self._follow(run, config, ended, interval_s, _LineMeter(self.say, config.train.steps))

    def _follow(
        self, run: Store, config: Config, ended: threading.Event, interval_s: float, meter: Meter
    ) -> None:
        rate = Rate()
        while True:
            last_look = ended.wait(interval_s)
            records = read_metrics(run)
            if records:
                latest = records[-1]
                images_s = rate.update(time.monotonic(), latest["images_seen"])
                meter.show(latest["step"], describe(latest, images_s))
            if last_look:
                return


def _workers(config: Config) -> str:
    span = config.cluster.span
    return str(span.max) if span.min == span.max else f"{span.min} to {span.max}"


def describe(record: dict[str, Any], images_s: float) -> str:
    """Losses of both halves and the speed, as text."""
    return (
        f"loss {record['loss']:.4f} = subject {record['instance_loss']:.4f} "
        f"+ class {record['prior_loss']:.4f}, {images_s:.1f} images/s"
    )


class Rate:
    """Images a second since the first look."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def update(self, at_s: float, images: int) -> float:
        """Mean rate up to now; 0 at the first look, and starts anew after a rewind."""
        if self._first is None or images < self._first[1]:
            self._first = at_s, images
        started, before = self._first
        return (images - before) / (at_s - started) if at_s > started else 0.0


class _BarMeter:
    def __init__(self, bar: Progress, total: int) -> None:
        self._bar, self._task = bar, bar.add_task("waiting for workers", total=total)
        self._shown = 0

    def show(self, done: int, text: str) -> None:
        if done < self._shown:
            # Workers were restarted: the time left is told from their steps alone.
            self._bar.reset(self._task)
        self._shown = done
        self._bar.update(self._task, completed=done, description=text)


class _LineMeter:
    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say, self._total = say, total
        self._at, self._shown = 0.0, 0
        self._first: tuple[float, int] | None = None

    def show(self, done: int, text: str) -> None:
        now = time.monotonic()
        if self._first is None or done < self._shown:
            # The beginning, or of a restart: the time left is told from the steps since.
            self._first, self._shown = (now, done), done - 1
        if done == self._shown or (now - self._at < LINE_INTERVAL_S and done < self._total):
            return
        self._at, self._shown = now, done
        started, before = self._first
        self._say(
            f"step {done}/{self._total} {text}{self._left(done, done - before, now - started)}"
        )

    def _left(self, done: int, steps: int, seconds: float) -> str:
        """Nothing until a step has been timed."""
        return f", {(self._total - done) * seconds / steps:.0f} s left" if steps else ""


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
    )


class Board:
    """One set of bars on a terminal, shown while any of its stages runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = _bar(console)
        self._users, self._lock = 0, threading.Lock()

    def __enter__(self) -> Progress:
        """Show the bars."""
        with self._lock:
            self._users += 1
            self._bars.start()
        return self._bars

    def __exit__(self, *error: object) -> None:
        """Leave them as they stand once nobody uses them."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._bars.stop()

    def stage(self, label: str) -> "Stage":
        """A stage that is shown among the others."""
        return Stage(label, self)


class Stage:
    """Progress of a stage of known length: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, label: str, board: Board | None = None) -> None:
        self._label = label
        self._board = board or Board(Console(stderr=True, highlight=False))
        self._task: tuple[Progress, TaskID] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are there."""
        if not self._board.console.is_terminal:
            self._board.console.print(f"{self._label} {done}/{total}", markup=False)
            return
        if self._task is None:
            bars = self._board.__enter__()
            self._task = bars, bars.add_task(self._label, total=total)
        bars, task = self._task
        bars.update(task, completed=done)
        if done >= total:
            self._board.__exit__()
            self._task = None
