from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.config.load import load_config
from dreambooth_ray.storage.fence import RunHistory
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.evaluation_decision import (
    EvaluationDecision,
    find_protected_steps,
    is_evaluation_due,
    read_early_end_step,
    read_selection,
    write_early_end_step,
    write_selection,
)
from tests.unit.training.fitted import Fitted


def test_a_selection_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    assert read_selection(run) == EvaluationDecision()
    assert read_early_end_step(run, run.names(), RunHistory()) is None
    selection = EvaluationDecision(20, (10, 20, 30), True)
    write_selection(run, selection)
    write_early_end_step(run, 30)
    assert read_selection(run) == selection
    assert read_early_end_step(run, run.names(), RunHistory()) == 30
    # Lease 2 went on from step 20: what an older one says of step 30 is void, its own is not.
    followed = RunHistory(takeovers=((2, 20),))
    assert read_early_end_step(run, run.names(), followed) is None
    write_early_end_step(run, 30, lease=2)
    assert read_early_end_step(run, run.names(), followed) == 30
    assert read_selection(run, lease=2) == EvaluationDecision()


def test_the_best_and_what_was_not_judged_are_spared() -> None:
    assert find_protected_steps([10, 20, 30, 40], EvaluationDecision(20, (10, 20, 30))) == {20, 40}
    assert find_protected_steps([10], EvaluationDecision()) == {10}


def test_what_is_never_judged_is_not_spared_and_the_best_is_whatever_its_step() -> None:
    selection = EvaluationDecision(25, (20, 25))
    assert find_protected_steps([10, 20, 25, 40], selection, lambda step: step == 40) == {25, 40}


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 20), st.integers(0, 3000))
def test_a_run_is_evaluated_at_few_of_its_checkpoints_and_at_its_last(
    steps: int, every: int, most: int, other: int
) -> None:
    config = load_config(
        "toy-robot.yaml",
        [
            "subject.photos=.", "subject.class_noun=robot", f"train.steps={steps}",
            f"checkpoint.every={every}", f"choice.max_evaluations={most}",
        ],
    )  # fmt: skip
    checkpoints = [*range(every, steps, every), steps]
    due = [step for step in checkpoints if is_evaluation_due(config, step)]
    assert due[-1] == steps
    assert len(due) <= most + (steps % every > 0)
    # As even as checkpoints are: no gap is longer than what as few of them must leave.
    gaps = [after - before for before, after in pairwise([0, *due])]
    assert max(gaps) < every + steps / most + every
    choice = config.choice.model_copy(update={"max_evaluations": 0})
    assert is_evaluation_due(config.model_copy(update={"choice": choice}), other)


@pytest.mark.parametrize(("patience", "last"), [(1, 2), (0, 5)])
def test_training_ends_with_a_checkpoint_once_the_selection_says_so(
    tmp_path: Path, tiny_model: Path, photos: Path, priors: Store, patience: int, last: int
) -> None:
    run = Store(str(tmp_path / "run"))
    write_selection(run, EvaluationDecision(stop=True))
    fitted = Fitted(
        tiny_model, photos, priors, "choice.rule=best", f"choice.patience={patience}",
        "checkpoint.every=2", "train.steps=5", track=run, keep=True,
    )  # fmt: skip
    assert fitted.trainer.global_step == committed_steps(run)[-1] == last
    assert read_early_end_step(run, run.names(), RunHistory()) == (2 if patience else None)
