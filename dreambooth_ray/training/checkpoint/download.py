"""The complete training state of a step, brought to this machine and verified."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import fence, manifest
from dreambooth_ray.storage.store import Store

STATE = "state.ckpt"  # a file, or a folder with files of every worker
AVERAGE = "average"  # in a state: averaged weights, by the names of the state_dict


@dataclass(frozen=True)
class DownloadedCheckpoint:
    """A checkpoint on this machine, verified; about is what its manifest says of it."""

    step: int
    state: Path
    about: dict[str, object]


def restore_step(run: Store, step: int, local: Path) -> Path:
    """Download the checkpoint of a step; returns the path of its state. raises: CheckpointError"""
    return restore_checkpoint(run, fence.find_checkpoint(run, step), local)


def restore_checkpoint(run: Store, checkpoint: fence.CheckpointId, local: Path) -> Path:
    """Download one checkpoint; returns the path of its state. raises: CheckpointError"""
    manifest.download_artifact(run, checkpoint.name, local)
    return local / STATE


def restore_newest(
    run: Store, local: Path, on_damage: Callable[[str], None] = lambda _: None
) -> DownloadedCheckpoint | None:
    """Download the newest intact checkpoint; None if there is none at all.

    A damaged one is passed over for the one before, after a word to on_damage.
    raises: CheckpointError if there are checkpoints and none is intact
    """
    damages: list[str] = []
    for step, checkpoint in reversed(fence.read_history(run).checkpoints.items()):
        folder = local / str(step)
        try:
            about = manifest.download_artifact(run, checkpoint.name, folder)
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
