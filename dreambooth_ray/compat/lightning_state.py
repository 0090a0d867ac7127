"""Of Lightning: counters inside its checkpoints, documented nowhere. Nothing is imported.

Private: the progress of the training loop under "loops", and LambdaLR's `_step_count`.
"""

import copy
from typing import Any

_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


def set_batch_progress(checkpoint: dict[str, Any], num_batches: int) -> None:
    """Let the training loop go on as if `num_batches` batches had been taken; in place."""
    batch_progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for batch_counts in (batch_progress["total"], batch_progress["current"]):
        batch_counts.update(
            dict.fromkeys(("ready", "started", "processed", "completed"), num_batches)
        )


def read_trainer_loop_states(trainer: Any) -> dict[str, Any]:
    """The loops of a trainer that has done nothing yet, as a checkpoint has them."""
    return {name: getattr(trainer, name).state_dict() for name in _LOOPS}


def build_lightning_checkpoint(
    loops: dict[str, Any],
    num_steps: int,
    optimizer: dict[str, Any],
    scheduler: dict[str, Any],
    version: str,
) -> dict[str, Any]:
    """What Lightning would save at the end of a batch of its first epoch, less the weights: of a
    training of `num_steps` optimizer steps of one batch each.

    loops: of `read_trainer_loop_states`; optimizer, scheduler: their states; version: of Lightning
    """
    loops = copy.deepcopy(loops)
    fit_loop_state = loops["fit_loop"]
    for progress_scope in ("total", "current"):
        fit_loop_state["epoch_progress"][progress_scope].update(ready=1, started=1)
        fit_loop_state["epoch_loop.scheduler_progress"][progress_scope].update(
            ready=num_steps, completed=num_steps
        )
        optimizer_progress = fit_loop_state["epoch_loop.automatic_optimization.optim_progress"][
            "optimizer"
        ]
        optimizer_progress["step"][progress_scope].update(ready=num_steps, completed=num_steps)
        optimizer_progress["zero_grad"][progress_scope].update(
            ready=num_steps, started=num_steps, completed=num_steps
        )
    fit_loop_state["epoch_loop.state_dict"]["_batches_that_stepped"] = num_steps - 1
    checkpoint = {
        "epoch": 0,
        "global_step": num_steps,
        "pytorch-lightning_version": version,
        "loops": loops,
        "callbacks": {},
        "optimizer_states": [optimizer],
        "lr_schedulers": [scheduler | {"_step_count": num_steps + 1}],
    }
    set_batch_progress(checkpoint, num_steps)
    # It counts a batch as completed after the callbacks, one of which saves.
    for progress_scope in ("total", "current"):
        fit_loop_state["epoch_loop.batch_progress"][progress_scope]["completed"] = num_steps - 1
    return checkpoint
