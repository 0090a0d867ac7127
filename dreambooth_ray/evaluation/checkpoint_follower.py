"""Follows a training: evaluates its checkpoints once, and keeps the selection up to date."""

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
from dreambooth_ray.evaluation.fidelity_drift_plot import plot_pareto_front
from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.evaluation_decision import EvaluationDecision, write_selection

_POLL_LOCAL_S, _POLL_REMOTE_S = 0.5, 20.0
_CLOSE_TIMEOUT_S = 10.0


def scored_from_totals(
    step: int, totals: dict[str, float], choice: ChoiceConfig
) -> ScoredCheckpoint:
    """The fidelity and drift that a choice compares, of an evaluation's totals."""
    return ScoredCheckpoint(step, totals["dino"], totals[choice.drift])


def read_scored_checkpoints(run: Store, choice: ChoiceConfig) -> list[ScoredCheckpoint]:
    """A run's evaluated checkpoints, by step."""
    evaluated_ids = fence.parse_checkpoints(run.names(paths.EVALUATIONS))
    if not evaluated_ids:
        return []
    checkpoint_ids = fence.read_history(run).select_valid(evaluated_ids)
    all_checkpoint_totals = [
        json.loads(run.read(checkpoint.evaluation))["totals"] for checkpoint in checkpoint_ids
    ]
    return [
        scored_from_totals(checkpoint.step, checkpoint_totals, choice)
        for checkpoint, checkpoint_totals in zip(checkpoint_ids, all_checkpoint_totals, strict=True)
    ]


def plot_run_front(run: Store, choice: ChoiceConfig) -> Image.Image | None:
    """The plot of a run's evaluated checkpoints; None if it has none."""
    scored_checkpoints = read_scored_checkpoints(run, choice)
    best_checkpoint = pareto_front.select_best_within_drift(scored_checkpoints, choice.max_drift)
    return (
        plot_pareto_front(scored_checkpoints, best_checkpoint.step, choice.max_drift)
        if best_checkpoint
        else None
    )


def select_checkpoint(points: list[ScoredCheckpoint], choice: ChoiceConfig) -> EvaluationDecision:
    """The selection that follows from evaluated checkpoints. Pure."""
    best_checkpoint = pareto_front.select_best_within_drift(points, choice.max_drift)
    stall_step = pareto_front.find_early_stop_step(points, choice.patience, choice.min_gain)
    return EvaluationDecision(
        best_checkpoint.step if best_checkpoint else None,
        tuple(s.step for s in points),
        stall_step is not None,
    )


def log_evaluation(
    run: Store, choice: ChoiceConfig, points: list[ScoredCheckpoint], step: int
) -> None:
    """Into TensorBoard: fidelity and drift of one of these checkpoints, and their front as an
    image."""
    (scored_checkpoint,) = (point for point in points if point.step == step)
    best_checkpoint = pareto_front.select_best_within_drift(points, choice.max_drift)
    plot_pixels = np.asarray(
        plot_pareto_front(
            points, best_checkpoint.step if best_checkpoint else None, choice.max_drift
        )
    )
    with tempfile.TemporaryDirectory(prefix="dreambooth-watch-") as folder:
        log_directory = run.local_path(paths.TENSORBOARD) if run.is_local else Path(folder)
        with SummaryWriter(str(log_directory), filename_suffix=f".evaluation-{step}") as writer:
            writer.add_scalar("evaluation/fidelity", scored_checkpoint.fidelity, step)
            writer.add_scalar("evaluation/drift", scored_checkpoint.drift, step)
            writer.add_image("evaluation/front", plot_pixels, step, dataformats="HWC")
        for path in [] if run.is_local else log_directory.iterdir():
            run.upload(path, f"{paths.TENSORBOARD}/{path.name}")


class CheckpointFollower:
    """A context around a training; leaving it waits until the last checkpoint is evaluated."""

    def __init__(
        self,
        run: Store,
        choice: ChoiceConfig,
        evaluate: Callable[[int], ScoredCheckpoint],
        lease: int = 1,
        has_room: Callable[[], bool] = lambda: True,
        release: Callable[[], None] = lambda: None,
        is_due: Callable[[int], bool] = lambda step: True,
    ) -> None:
        """evaluate: scores the checkpoint of a step and stores its totals in the run.

        lease: number of the run's lease; has_room: whether an evaluation takes nothing which the
        training waits for; where it does, `release` gives it back, and checkpoints are evaluated
        once the training has ended; is_due: whether the checkpoint of a step is evaluated, unless
        it is the last
        """
        self._run, self._choice, self._evaluate, self._lease = run, choice, evaluate, lease
        self._is_due = is_due
        # All there are, by step: read once, since nobody else evaluates this run meanwhile.
        self._points: dict[int, ScoredCheckpoint] = {}
        self._waiting_steps, self._newest_step = set[int](), 0
        self._has_room, self._release = has_room, release
        self._training_ended = threading.Event()
        self._failures: dict[int, Exception] = {}
        self._side_work = SideWork(run)
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def __enter__(self) -> "CheckpointFollower":
        scored_checkpoints = read_scored_checkpoints(self._run, self._choice)
        self._points = {point.step: point for point in scored_checkpoints}
        write_selection(self._run, select_checkpoint(scored_checkpoints, self._choice), self._lease)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Evaluate what is left, and try once more what failed before.

        raises: what an evaluation failed with, if the training itself did not fail
        """
        self._training_ended.set()
        try:
            if error is None:
                self._thread.join()
                for step in sorted(self._failures):
                    self._evaluate_step(step)
        finally:
            self._side_work.close(_CLOSE_TIMEOUT_S)

    def _follow(self) -> None:
        """Until the training has ended and nothing is left; a failure is logged and passed over."""
        while True:
            # Read before the list: what is committed afterwards is seen next time.
            has_ended = self._training_ended.is_set()
            may_evaluate = has_ended or self._has_room()
            if not may_evaluate:
                self._release()
            elif self._side_work.run(
                "looking for new checkpoints", partial(self._evaluate_next, has_ended), False
            ):
                continue
            if has_ended:
                return
            self._training_ended.wait(_POLL_LOCAL_S if self._run.is_local else _POLL_REMOTE_S)

    def _evaluate_next(self, has_ended: bool) -> bool:
        """Evaluate the oldest checkpoint that was not yet; False if there is none."""
        new_steps = committed_steps(self._run, self._newest_step)
        self._newest_step = max(new_steps, default=self._newest_step)
        steps_to_evaluate = set(filter(self._is_due, new_steps))
        if has_ended and self._newest_step:
            steps_to_evaluate |= {self._newest_step} - self._failures.keys()
        self._waiting_steps |= steps_to_evaluate - self._points.keys()
        if not self._waiting_steps:
            return False
        step = min(self._waiting_steps)
        self._waiting_steps.remove(step)
        try:
            self._evaluate_step(step)
        except Exception as error:
            self._failures[step] = error
            self._side_work.note_failure(f"evaluation of the checkpoint of step {step}", error)
        return True

    def _evaluate_step(self, step: int) -> None:
        scored_checkpoint = self._evaluate(step)
        self._points[step] = scored_checkpoint
        scored_checkpoints = sorted(self._points.values(), key=lambda s: s.step)
        selection = select_checkpoint(scored_checkpoints, self._choice)
        write_selection(self._run, selection, self._lease)
        log_step_scores = partial(log_evaluation, self._run, self._choice, scored_checkpoints, step)
        self._side_work.run("showing evaluations in TensorBoard", log_step_scores, None)
