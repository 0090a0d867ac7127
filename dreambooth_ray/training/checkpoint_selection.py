"""What the evaluation beside a training has decided so far, as the training reads it."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True)
class CheckpointSelection:
    """best: step to keep; judged: steps evaluated; stop: whether the run should end."""

    best: int | None = None
    judged: tuple[int, ...] = ()
    stop: bool = False


def read_selection(run: Store) -> CheckpointSelection:
    """The newest of a run, or an empty one."""
    try:
        content = json.loads(run.read(paths.CHECKPOINT_SELECTION))
    except FileNotFoundError:
        return CheckpointSelection()
    return CheckpointSelection(content["best"], tuple(content["judged"]), content["stop"])


def write_selection(run: Store, selection: CheckpointSelection) -> None:
    """Replace the one in the run."""
    run.write(paths.CHECKPOINT_SELECTION, json.dumps(asdict(selection)).encode())


def find_protected_steps(steps: Iterable[int], selection: CheckpointSelection) -> frozenset[int]:
    """Checkpoints that rotation must leave: the best, and those not evaluated yet."""
    return frozenset(
        step for step in steps if step == selection.best or step not in selection.judged
    )


def write_end(run: Store, step: int) -> None:
    """Note that a run ended early, at `step`, by its evaluations."""
    run.write(paths.END, json.dumps({"step": step}).encode())


def read_end(run: Store) -> int | None:
    """The step a run was ended at by its evaluations; None if it was not."""
    try:
        return int(json.loads(run.read(paths.END))["step"])
    except FileNotFoundError:
        return None
