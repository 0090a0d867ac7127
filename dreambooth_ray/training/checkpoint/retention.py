"""Which checkpoints of a run are kept."""

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint_selection import find_protected_steps, read_selection


def committed_steps(run: Store) -> list[int]:
    """Steps of a run's committed checkpoints, ascending."""
    return paths.checkpoint_steps(run.names(paths.CHECKPOINTS))


def remove_old_checkpoints(run: Store, config: Config) -> None:
    """Remove what the configuration does not keep.

    Where evaluations choose, the best so far and those not evaluated yet stay.
    """
    settings, protected_steps = config.checkpoint, frozenset[int]()
    if config.choice.rule == "best":
        protected_steps = find_protected_steps(committed_steps(run), read_selection(run))
    rotate_checkpoints(run, settings.keep, settings.best, protected_steps)


def rotate_checkpoints(
    run: Store,
    num_kept: int,
    best_metric: str | None = None,
    protected_steps: frozenset[int] = frozenset(),
) -> None:
    """Remove all but the newest `num_kept` checkpoints and the best, once the newest is seen to
    be there: by what storage says of its files, which are not read.

    best_metric: metric of which the lowest is best; protected_steps: never removed here
    """
    steps = committed_steps(run)
    if len(steps) <= num_kept or manifest.find_loss(run, paths.checkpoint(steps[-1])):
        return
    kept_steps = {
        *steps[-num_kept:],
        *protected_steps,
        *([best_step(run, steps, best_metric)] if best_metric else []),
    }
    for step in steps:
        if step not in kept_steps:
            manifest.remove_artifact(run, paths.checkpoint(step))


def best_step(run: Store, steps: list[int], metric: str) -> int | None:
    """The earliest of these checkpoints with the lowest `metric`; None if none has it."""
    scores = {}
    for step in steps:
        try:
            value = manifest.read_about(run, paths.checkpoint(step)).get("metrics")
        except CheckpointError:
            continue
        if isinstance(value, dict) and metric in value:
            scores[step] = float(value[metric])
    return min(scores, key=lambda s: (scores[s], s)) if scores else None
