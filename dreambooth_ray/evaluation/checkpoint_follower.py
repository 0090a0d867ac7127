"""Follows a training: every checkpoint is judged once, and the verdict kept up to date."""

import json
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.evaluation import pareto_front
from dreambooth_ray.evaluation.pareto_front import Scored
from dreambooth_ray.evaluation.plot import front_plot
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.checkpoint_selection import CheckpointSelection, write_selection

_POLL_LOCAL_S, _POLL_REMOTE_S = 0.5, 5.0
_CLOSE_TIMEOUT_S = 10.0


def scored(step: int, totals: dict[str, float], wanted: ChoiceConfig) -> Scored:
    """What a choice looks at, of an evaluation's totals."""
    return Scored(step, totals["dino"], totals[wanted.drift])


def read_scored(run: Store, wanted: ChoiceConfig) -> list[Scored]:
    """The evaluations that a run's checkpoints have had, by step."""
    steps = paths.evaluation_steps(run.names(paths.EVALUATIONS))
    totals = [json.loads(run.read(paths.evaluation(s)))["totals"] for s in steps]
    return [scored(s, t, wanted) for s, t in zip(steps, totals, strict=True)]


def run_plot(run: Store, wanted: ChoiceConfig) -> Image.Image | None:
    """The plot of the evaluations that a run has had; None if it had none."""
    points = read_scored(run, wanted)
    kept = pareto_front.best(points, wanted.max_drift)
    return front_plot(points, kept.step, wanted.max_drift) if kept else None


def decide(points: list[Scored], wanted: ChoiceConfig) -> CheckpointSelection:
    """The verdict that evaluations lead to. Pure."""
    kept = pareto_front.best(points, wanted.max_drift)
    stalled = pareto_front.stalls_at(points, wanted.patience, wanted.min_gain)
    return CheckpointSelection(
        kept.step if kept else None, tuple(s.step for s in points), stalled is not None
    )


class CheckpointFollower:
    """A context around a training; leaving it waits until the last checkpoint is judged."""

    def __init__(self, run: Store, wanted: ChoiceConfig, judge: Callable[[int], Scored]) -> None:
        """judge: evaluates the checkpoint of a step and stores its numbers in the run."""
        self._run, self._wanted, self._judge = run, wanted, judge
        self._ends = threading.Event()
        self._failures: dict[int, Exception] = {}
        self._side_work = SideWork(run)
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def __enter__(self) -> "CheckpointFollower":
        write_selection(self._run, decide(read_scored(self._run, self._wanted), self._wanted))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Judges what is left, and once more what could not be judged before.

        raises: what an evaluation failed with, if the training itself did not fail
        """
        self._ends.set()
        try:
            if error is None:
                self._thread.join()
                for step in sorted(self._failures):
                    self._judge_one(step)
        finally:
            self._side_work.close(_CLOSE_TIMEOUT_S)

    def _follow(self) -> None:
        """Until the training has ended and nothing is left; a failure is said and passed over."""
        while True:
            # Read before the list: what is committed afterwards is seen next time.
            ends = self._ends.is_set()
            if not self._side_work.run("looking for new checkpoints", self._judge_new, False):
                if ends:
                    return
                self._ends.wait(_POLL_LOCAL_S if self._run.is_local else _POLL_REMOTE_S)

    def _judge_new(self) -> bool:
        """Judge the oldest checkpoint that was not; False if there was none."""
        judged = {point.step for point in read_scored(self._run, self._wanted)}
        todo = sorted(set(committed_steps(self._run)) - judged - self._failures.keys())
        if not todo:
            return False
        try:
            self._judge_one(todo[0])
        except Exception as error:
            self._failures[todo[0]] = error
            self._side_work.note(f"evaluation of the checkpoint of step {todo[0]}", error)
        return True

    def _judge_one(self, step: int) -> None:
        found = self._judge(step)
        others = (s for s in read_scored(self._run, self._wanted) if s.step != step)
        points = sorted([*others, found], key=lambda s: s.step)
        verdict = decide(points, self._wanted)
        write_selection(self._run, verdict)
        show = partial(self._show, found, points, verdict)
        self._side_work.run("showing evaluations in TensorBoard", show, None)

    def _show(self, found: Scored, points: list[Scored], verdict: CheckpointSelection) -> None:
        """Into TensorBoard: both curves, and the front as an image."""
        plot = np.asarray(front_plot(points, verdict.best, self._wanted.max_drift))
        with tempfile.TemporaryDirectory(prefix="dreambooth-watch-") as folder:
            local = self._run.is_local
            place = self._run.local_path(paths.TENSORBOARD) if local else Path(folder)
            with SummaryWriter(str(place), filename_suffix=f".evaluation-{found.step}") as writer:
                writer.add_scalar("evaluation/fidelity", found.fidelity, found.step)
                writer.add_scalar("evaluation/drift", found.drift, found.step)
                writer.add_image("evaluation/front", plot, found.step, dataformats="HWC")
            for path in [] if local else place.iterdir():
                self._run.upload(path, f"{paths.TENSORBOARD}/{path.name}")
