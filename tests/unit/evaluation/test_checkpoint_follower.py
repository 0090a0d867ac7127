import json
import threading
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.config.machines import ClusterConfig, CountRange
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.evaluation.actor_resources import has_spare_cluster_device
from dreambooth_ray.evaluation.checkpoint_follower import (
    CheckpointFollower,
    plot_run_front,
    read_scored_checkpoints,
    select_checkpoint,
)
from dreambooth_ray.evaluation.fidelity_drift_plot import plot_pareto_front
from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint import download, retention
from dreambooth_ray.training.evaluation_decision import (
    EvaluationDecision,
    find_protected_steps,
    read_selection,
)
from dreambooth_ray.training.worker_messages import read_new_messages

CHOICE = ChoiceConfig(rule="best", drift="drift", max_drift=0.2, patience=1)
TRUTH = {5: (0.4, 0.0), 10: (0.8, 0.1), 15: (0.8, 0.4)}


def commit(run: Store, step: int, tmp_path: Path) -> None:
    folder = tmp_path / f"local-{step}"
    folder.mkdir()
    (folder / download.STATE).write_bytes(b"state")
    manifest.commit_artifact(run, paths.checkpoint(step), folder, {"step": step})


class TableEvaluator:
    """Evaluates by a table; the totals go into the run, as an evaluator's do."""

    def __init__(self, run: Store) -> None:
        self.run, self.steps = run, list[int]()

    def __call__(self, step: int) -> ScoredCheckpoint:
        self.steps.append(step)
        fidelity, drift = TRUTH[step]
        totals = {"dino": fidelity, "drift": drift, "pres": 0.5}
        self.run.write(paths.evaluation(step), json.dumps({"totals": totals}).encode())
        return ScoredCheckpoint(step, fidelity, drift)


def test_every_checkpoint_is_evaluated_once_and_the_best_outlives_rotation(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    evaluator = TableEvaluator(run)
    with CheckpointFollower(run, CHOICE, evaluator):
        for step in TRUTH:
            commit(run, step, tmp_path)
    assert evaluator.steps == [5, 10, 15]
    selection = read_selection(run)
    assert selection == EvaluationDecision(10, (5, 10, 15), True)
    protected_steps = find_protected_steps(retention.committed_steps(run), selection)
    retention.rotate_checkpoints(run, 1, protected_steps=protected_steps)
    assert retention.committed_steps(run) == [10, 15]
    with CheckpointFollower(run, CHOICE, evaluator):
        pass
    assert evaluator.steps == [5, 10, 15]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    curve = [(e.step, round(e.value, 3)) for e in events.Scalars("evaluation/fidelity")]
    assert curve == [(5, 0.4), (10, 0.8), (15, 0.8)]
    assert [e.step for e in events.Images("evaluation/front")] == [5, 10, 15]


def test_few_checkpoints_are_evaluated_and_the_last_one_always(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    evaluator = TableEvaluator(run)
    with CheckpointFollower(run, CHOICE, evaluator, is_due=lambda step: step == 5):
        for step in TRUTH:
            commit(run, step, tmp_path)
    assert evaluator.steps == [5, 15]
    assert read_selection(run).judged == (5, 15)


def test_a_last_checkpoint_that_can_not_be_evaluated_is_tried_once_more(tmp_path: Path) -> None:
    run, steps = Store(str(tmp_path / "run")), list[int]()
    commit(run, 5, tmp_path)

    def broken(step: int) -> ScoredCheckpoint:
        steps.append(step)
        raise CheckpointError("damaged")

    follower = CheckpointFollower(run, CHOICE, broken, is_due=lambda step: False)
    with pytest.raises(CheckpointError, match="damaged"), follower:
        pass
    assert steps == [5, 5]


def test_rotation_waits_for_the_evaluation(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    for step in TRUTH:
        commit(run, step, tmp_path)
    selection = EvaluationDecision(5, (5, 10))
    protected_steps = find_protected_steps(retention.committed_steps(run), selection)
    retention.rotate_checkpoints(run, 1, protected_steps=protected_steps)
    assert retention.committed_steps(run) == [5, 15]


def test_what_the_evaluation_fails_with_is_raised_when_training_is_done(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    commit(run, 5, tmp_path)

    def broken(step: int) -> ScoredCheckpoint:
        raise CheckpointError(f"step {step} is damaged")

    with pytest.raises(CheckpointError, match="step 5"), CheckpointFollower(run, CHOICE, broken):
        pass
    assert "evaluation of the checkpoint of step 5 failed" in read_new_messages(run, set())[0]


def test_an_evaluation_that_fails_once_is_made_up_for_and_holds_up_no_other(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    evaluator, steps = TableEvaluator(run), list[int]()

    def failing_once(step: int) -> ScoredCheckpoint:
        steps.append(step)
        if steps == [5]:
            raise OSError("out of memory")
        return evaluator(step)

    with CheckpointFollower(run, CHOICE, failing_once):
        for step in TRUTH:
            commit(run, step, tmp_path)
    assert steps == [5, 10, 15, 5]
    assert read_selection(run) == EvaluationDecision(10, (5, 10, 15), True)


def test_a_selection_follows_from_the_evaluations() -> None:
    points = [ScoredCheckpoint(step, *numbers) for step, numbers in TRUTH.items()]
    assert select_checkpoint(points, CHOICE) == EvaluationDecision(10, (5, 10, 15), True)
    assert select_checkpoint(points[:2], CHOICE) == EvaluationDecision(10, (5, 10), False)
    assert select_checkpoint([], CHOICE) == EvaluationDecision()


def test_scores_are_read_back_and_a_run_without_them_has_no_plot(tmp_path: Path) -> None:
    run, choice = Store(str(tmp_path)), ChoiceConfig(rule="best")
    assert plot_run_front(run, choice) is None
    run.write(paths.evaluation(7), json.dumps({"totals": {"dino": 0.5, "pres": 0.3}}).encode())
    assert read_scored_checkpoints(run, choice) == [ScoredCheckpoint(7, 0.5, 0.3)]
    assert plot_run_front(run, choice) is not None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_plot_marks_the_best(count: int) -> None:
    points = [ScoredCheckpoint(step, *numbers) for step, numbers in TRUTH.items()][:count]
    plot = np.asarray(plot_pareto_front(points, 10, 0.2))
    assert plot.shape == (420, 560, 3)
    ringed = (plot == (42, 125, 63)).all(axis=-1).any()
    assert ringed == (count == 3)


def test_nothing_is_evaluated_with_what_the_training_waits_for(tmp_path: Path) -> None:
    """On as many GPUs as workers, an evaluation before or beside the training is a deadlock."""
    run, released = Store(str(tmp_path / "run")), threading.Event()
    evaluator = TableEvaluator(run)
    commit(run, 5, tmp_path)
    with CheckpointFollower(run, CHOICE, evaluator, 1, lambda: False, released.set):
        assert released.wait(30)
        assert evaluator.steps == []
        commit(run, 10, tmp_path)
    assert evaluator.steps == [5, 10]
    assert read_selection(run).judged == (5, 10)


def test_room_beside_a_training_is_more_than_its_workers_take() -> None:
    for workers, num_gpus, has_room in ((1, 1, False), (1, 2, True), (4, 4, False), (4, 5, True)):
        cluster = ClusterConfig(workers=workers, gpus=True)
        assert has_spare_cluster_device(cluster, {"CPU": 64.0, "GPU": num_gpus}) == has_room
        cluster = ClusterConfig(workers=workers)
        assert has_spare_cluster_device(cluster, {"CPU": num_gpus}) == has_room
    assert not has_spare_cluster_device(
        ClusterConfig(workers=CountRange(min=1, max=4)), {"CPU": 4.0}
    )
