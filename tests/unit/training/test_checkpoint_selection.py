from pathlib import Path

import pytest

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.checkpoint_selection import (
    CheckpointSelection,
    find_protected_steps,
    read_end,
    read_selection,
    write_end,
    write_selection,
)
from tests.unit.training.fitted import Fitted


def test_a_selection_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    assert read_selection(run) == CheckpointSelection()
    assert read_end(run) is None
    selection = CheckpointSelection(20, (10, 20, 30), True)
    write_selection(run, selection)
    write_end(run, 30)
    assert read_selection(run) == selection
    assert read_end(run) == 30


def test_the_best_and_what_was_not_judged_are_spared() -> None:
    assert find_protected_steps([10, 20, 30, 40], CheckpointSelection(20, (10, 20, 30))) == {20, 40}
    assert find_protected_steps([10], CheckpointSelection()) == {10}


@pytest.mark.parametrize(("patience", "last"), [(1, 2), (0, 5)])
def test_training_ends_with_a_checkpoint_once_the_selection_says_so(
    tmp_path: Path, tiny_model: Path, photos: Path, priors: Store, patience: int, last: int
) -> None:
    run = Store(str(tmp_path / "run"))
    write_selection(run, CheckpointSelection(stop=True))
    fitted = Fitted(
        tiny_model, photos, priors, "choice.rule=best", f"choice.patience={patience}",
        "checkpoint.every=2", "train.steps=5", track=run, keep=True,
    )  # fmt: skip
    assert fitted.trainer.global_step == committed_steps(run)[-1] == last
    assert read_end(run) == (2 if patience else None)
