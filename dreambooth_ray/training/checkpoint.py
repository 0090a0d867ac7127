"""Complete training state in storage: when it is saved, and which one a start takes."""

import tempfile
from pathlib import Path

import torch
from pytorch_lightning import Trainer

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import layout, manifest
from dreambooth_ray.storage.store import Store

STATE = "state.ckpt"
AVERAGE = "average"  # in a state: averaged weights, by the names of the state_dict


def committed_steps(run: Store) -> list[int]:
    """Steps of a run's committed checkpoints, ascending."""
    return layout.checkpoint_steps(run.names(layout.CHECKPOINTS))


def save(trainer: Trainer, run: Store, step: int, keep: int) -> None:
    """Save on all workers, commit by the first, then drop what `keep` no longer covers."""
    with tempfile.TemporaryDirectory(prefix="dreambooth-checkpoint-") as folder:
        trainer.save_checkpoint(Path(folder) / STATE)
        if trainer.is_global_zero:
            about: dict[str, object] = {"step": step, "world_size": trainer.world_size}
            manifest.commit(run, layout.checkpoint(step), Path(folder), about)
            rotate(run, keep)
    trainer.strategy.barrier("checkpoint")


def rotate(run: Store, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, once the newest has been verified."""
    steps = committed_steps(run)
    if len(steps) <= keep or manifest.damage(run, layout.checkpoint(steps[-1])):
        return
    for step in steps[:-keep]:
        manifest.discard(run, layout.checkpoint(step))


def restore_newest(run: Store, local: Path) -> tuple[int, Path] | None:
    """Download the newest intact checkpoint; None if there is none at all.

    A damaged one is passed over for the one before.
    returns: (its step, path of the state)
    raises: CheckpointError if there are checkpoints and none is intact
    """
    steps = committed_steps(run)
    problems = []
    for step in reversed(steps):
        folder = local / str(step)
        try:
            manifest.fetch(run, layout.checkpoint(step), folder)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        return step, folder / STATE
    if problems:
        raise CheckpointError(f"no intact checkpoint in {run.uri}: {'; '.join(problems)}")
    return None


def trained_weights(state: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of each trained part in a saved state: {"unet": ..., "text_encoder": ...}.

    The averaged ones where there are any.
    """
    saved = torch.load(state, map_location="cpu", weights_only=True)
    weights = saved.get(AVERAGE) or saved["state_dict"]
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts
