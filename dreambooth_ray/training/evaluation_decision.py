"""What the evaluation beside a training has decided so far, as the training reads it."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True)
class EvaluationDecision:
    """best: step to keep; judged: steps evaluated; stop: whether the run should end."""

    best: int | None = None
    judged: tuple[int, ...] = ()
    stop: bool = False


def read_selection(run: Store, lease: int = 0) -> EvaluationDecision:
    """That of the holder of `lease`, or an empty one."""
    try:
        selection_fields = json.loads(
            run.read(fence.file_name_with_lease(paths.CHECKPOINT_SELECTION, lease))
        )
    except FileNotFoundError:
        return EvaluationDecision()
    return EvaluationDecision(
        selection_fields["best"], tuple(selection_fields["judged"]), selection_fields["stop"]
    )


def write_selection(run: Store, selection: EvaluationDecision, lease: int = 0) -> None:
    """Replace that of the holder of `lease`."""
    name = fence.file_name_with_lease(paths.CHECKPOINT_SELECTION, lease)
    run.write(name, json.dumps(asdict(selection)).encode())


def is_evaluation_due(config: Config, step: int) -> bool:
    """Whether a run evaluates the checkpoint of this step: of choice.max_evaluations, which are
    spread evenly, or the last. Pure."""
    num_steps, save_interval = config.train.steps, config.checkpoint.every
    max_evaluations = config.choice.max_evaluations
    if not max_evaluations or step >= num_steps:
        return True
    saves_per_evaluation = -(-num_steps // (save_interval * max_evaluations))
    return step % (save_interval * saves_per_evaluation) == 0


def find_protected_steps(
    steps: Iterable[int],
    selection: EvaluationDecision,
    is_due: Callable[[int], bool] = lambda step: True,
) -> frozenset[int]:
    """Checkpoints that rotation must leave: the best, and those to be evaluated yet.

    is_due: whether the checkpoint of a step is evaluated at all
    """
    return frozenset(
        step
        for step in steps
        if step == selection.best or (step not in selection.judged and is_due(step))
    )


def write_early_end_step(run: Store, step: int, lease: int = 0) -> None:
    """Note that a run ended early, at `step`, by its evaluations; by the holder of `lease`."""
    run.write(fence.file_name_with_lease(paths.END, lease), json.dumps({"step": step}).encode())


def read_early_end_step(run: Store, names: list[str], history: fence.RunHistory) -> int | None:
    """The step a run was ended at by its evaluations; None if it was not.

    names: in the run's folder
    """
    for lease in fence.list_leases_of_file(names, paths.END):
        try:
            step = int(json.loads(run.read(fence.file_name_with_lease(paths.END, lease)))["step"])
        except FileNotFoundError:
            continue
        if history.is_valid(step, lease):
            return step
    return None
