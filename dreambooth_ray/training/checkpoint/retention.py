"""Complete training state in storage: what is kept, and which one a start takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint_selection import find_protected_steps, read_selection

STATE = "state.ckpt"  # a file, or a folder with files of every worker
AVERAGE = "average"  # in a state: averaged weights, by the names of the state_dict


@dataclass(frozen=True)
class DownloadedCheckpoint:
    """A checkpoint on this machine, verified; about is what its manifest says of it."""

    step: int
    state: Path
    about: dict[str, object]


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
    """Remove all but the newest `num_kept` checkpoints and the best, once the newest is verified.

    best_metric: metric of which the lowest is best; protected_steps: never removed here
    """
    steps = committed_steps(run)
    if len(steps) <= num_kept or manifest.find_damage(run, paths.checkpoint(steps[-1])):
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


def restore_step(run: Store, step: int, local: Path) -> Path:
    """Download one checkpoint; returns the path of its state. raises: CheckpointError"""
    manifest.download_artifact(run, paths.checkpoint(step), local)
    return local / STATE


def restore_newest(
    run: Store, local: Path, on_damage: Callable[[str], None] = lambda _: None
) -> DownloadedCheckpoint | None:
    """Download the newest intact checkpoint; None if there is none at all.

    A damaged one is passed over for the one before, after a word to on_damage.
    raises: CheckpointError if there are checkpoints and none is intact
    """
    damages: list[str] = []
    for step in reversed(committed_steps(run)):
        folder = local / str(step)
        try:
            about = manifest.download_artifact(run, paths.checkpoint(step), folder)
        except CheckpointError as error:
            damages.append(str(error))
            on_damage(f"checkpoint of step {step} is passed over: {error}")
            continue
        return DownloadedCheckpoint(step, folder / STATE, about)
    if damages:
        raise CheckpointError(f"no intact checkpoint in {run.uri}: {'; '.join(damages)}")
    return None


def check_fits(
    checkpoint: DownloadedCheckpoint, strategy: str, model_hash: str, run_uri: str
) -> None:
    """raises: CheckpointError if a checkpoint is of another model, or of another strategy"""
    about = checkpoint.about
    if model_hash and about.get("model_hash", model_hash) != model_hash:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {run_uri} is of another model than "
            "model.uri; give the model that the run was started with"
        )
    if about.get("strategy", strategy) != strategy:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {run_uri} was saved with train.strategy="
            f"{about['strategy']}, and this is {strategy}; resume with that"
        )
