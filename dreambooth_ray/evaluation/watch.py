"""Follows a training: every checkpoint is judged once, and the verdict kept up to date."""

import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dreambooth_ray.config.choice import ChoiceConfig
from dreambooth_ray.evaluation import choice
from dreambooth_ray.evaluation.choice import Scored
from dreambooth_ray.evaluation.plot import front_plot
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint import committed_steps
from dreambooth_ray.training.verdict import Verdict, write_verdict

_POLL_LOCAL_S, _POLL_REMOTE_S = 0.5, 5.0


def scored(step: int, totals: dict[str, float], wanted: ChoiceConfig) -> Scored:
    """What a choice looks at, of an evaluation's totals."""
    return Scored(step, totals["dino"], totals[wanted.drift])


def read_scored(run: Store, wanted: ChoiceConfig) -> list[Scored]:
    """The evaluations that a run's checkpoints have had, by step."""
    steps = layout.evaluation_steps(run.names(layout.EVALUATIONS))
    totals = [json.loads(run.read(layout.evaluation(s)))["totals"] for s in steps]
    return [scored(s, t, wanted) for s, t in zip(steps, totals, strict=True)]


def run_plot(run: Store, wanted: ChoiceConfig) -> Image.Image | None:
    """The plot of the evaluations that a run has had; None if it had none."""
    points = read_scored(run, wanted)
    kept = choice.best(points, wanted.max_drift)
    return front_plot(points, kept.step, wanted.max_drift) if kept else None


def decide(points: list[Scored], wanted: ChoiceConfig) -> Verdict:
    """The verdict that evaluations lead to. Pure."""
    kept = choice.best(points, wanted.max_drift)
    stalled = choice.stalls_at(points, wanted.patience, wanted.min_gain)
    return Verdict(kept.step if kept else None, tuple(s.step for s in points), stalled is not None)


class Watch:
    """A context around a training; leaving it waits until the last checkpoint is judged."""

    def __init__(self, run: Store, wanted: ChoiceConfig, judge: Callable[[int], Scored]) -> None:
        """judge: evaluates the checkpoint of a step and stores its numbers in the run."""
        self._run, self._wanted, self._judge = run, wanted, judge
        self._ends = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        write_verdict(self._run, decide(read_scored(self._run, self._wanted), self._wanted))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """raises: what an evaluation failed with, if the training itself did not fail."""
        self._ends.set()
        if error is None:
            self._thread.join()
            if self._failure is not None:
                raise self._failure

    def _follow(self) -> None:
        try:
            while True:
                # Read before the list: what is committed afterwards is seen next time.
                ends = self._ends.is_set()
                if not self._judge_new() and ends:
                    return
                self._ends.wait(_POLL_LOCAL_S if self._run.is_local else _POLL_REMOTE_S)
        except Exception as error:
            self._failure = error

    def _judge_new(self) -> bool:
        """Judge the oldest checkpoint that was not; False if there was none."""
        points = read_scored(self._run, self._wanted)
        todo = sorted(set(committed_steps(self._run)) - {s.step for s in points})
        if not todo:
            return False
        found = self._judge(todo[0])
        points = sorted([*points, found], key=lambda s: s.step)
        verdict = decide(points, self._wanted)
        write_verdict(self._run, verdict)
        self._show(found, points, verdict)
        return True

    def _show(self, found: Scored, points: list[Scored], verdict: Verdict) -> None:
        """Into TensorBoard: both curves, and the front as a picture."""
        plot = np.asarray(front_plot(points, verdict.best, self._wanted.max_drift))
        with tempfile.TemporaryDirectory(prefix="dreambooth-watch-") as folder:
            local = self._run.is_local
            place = self._run.local_path(layout.TENSORBOARD) if local else Path(folder)
            with SummaryWriter(str(place), filename_suffix=f".evaluation-{found.step}") as writer:
                writer.add_scalar("evaluation/fidelity", found.fidelity, found.step)
                writer.add_scalar("evaluation/drift", found.drift, found.step)
                writer.add_image("evaluation/front", plot, found.step, dataformats="HWC")
            for path in [] if local else place.iterdir():
                self._run.upload(path, f"{layout.TENSORBOARD}/{path.name}")
