"""A subject's checkpoint: the files that its run would have saved alone, and reads again.

So a subject leaves the slots with a run that `resume` goes on with, and the other way round.
"""

import functools
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dreambooth_ray.compat.lightning_state import make_checkpoint, read_loop_states
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.training.checkpoint.download import AVERAGE, WEIGHTS
from dreambooth_ray.training.slots.slot_subject import MOMENTS, AdapterState, SlotSubject
from dreambooth_ray.training.strategy import DirectCheckpointIO


@functools.cache
def _read_fresh_loop_states() -> dict[str, Any]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return read_loop_states(trainer)


def save_subject(subject: SlotSubject, denoiser_name: str, path: Path) -> None:
    """Write a subject's complete state. path: a local file, whose folder may have others beside"""
    state = subject.read_state()
    checkpoint = make_checkpoint(
        _read_fresh_loop_states(),
        state.step,
        _make_optimizer_state(subject, state),
        subject.scheduler_state,
        version("pytorch-lightning"),
    )
    checkpoint[WEIGHTS] = _add_prefix(denoiser_name, state.weights)
    if subject.config.train.ema_decay:
        checkpoint[AVERAGE] = _add_prefix(denoiser_name, state.average)
    DirectCheckpointIO().save_checkpoint(checkpoint, path)


def _make_optimizer_state(subject: SlotSubject, state: AdapterState) -> dict[str, Any]:
    """As of an optimizer whose weights are those of the layers, in their order."""
    param_group_settings = subject.optimizer.state_dict()["param_groups"][0]
    states_by_index: dict[int, dict[str, Tensor]] = {}
    if state.moments:
        for index, weight_name in enumerate(state.weights):
            optimizer_moments = {
                kind: state.moments[kind][weight_name].cpu().clone() for kind in MOMENTS
            }
            states_by_index[index] = {
                "step": torch.tensor(float(state.update_count)),
                **optimizer_moments,
            }
    return {
        "state": states_by_index,
        "param_groups": [param_group_settings | {"params": list(range(len(state.weights)))}],
    }


def _add_prefix(part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Copies: a view would be saved with all slots behind it.
    return {f"{part}.{name}": weight.detach().cpu().clone() for name, weight in weights.items()}


def load_subject(path: Path, denoiser_name: str, adapter: Mapping[str, Tensor]) -> AdapterState:
    """The state in a file, of whichever trainer. adapter: a new one, for names and shapes

    raises: CheckpointError if the weights are not exactly those of such an adapter
    """
    checkpoint = DirectCheckpointIO().load_checkpoint(path, weights_only=False)
    stored_weights: Mapping[str, Tensor] = checkpoint[WEIGHTS]
    names_by_full_name = {f"{denoiser_name}.{name}": name for name in adapter}
    mismatched_names = sorted(names_by_full_name.keys() ^ set(stored_weights))
    mismatched_names += sorted(
        full_name
        for full_name, name in names_by_full_name.items()
        if not mismatched_names and stored_weights[full_name].shape != adapter[name].shape
    )
    if mismatched_names:
        raise CheckpointError(
            "the checkpoint holds other weights than the configuration trains, "
            f"{mismatched_names[0]} for one; it is of another train.method or model"
        )
    weights = {name: stored_weights[full_name] for full_name, name in names_by_full_name.items()}
    optimizer_states = checkpoint["optimizer_states"][0]["state"]
    optimizer_moments = {
        kind: {name: optimizer_states[index][kind] for index, name in enumerate(adapter)}
        for kind in MOMENTS
        if optimizer_states
    }
    stored_average = checkpoint.get(AVERAGE) or {}
    return AdapterState(
        int(checkpoint["global_step"]),
        weights,
        optimizer_moments,
        int(optimizer_states[0]["step"]) if optimizer_states else 0,
        {names_by_full_name[full_name]: weight for full_name, weight in stored_average.items()},
    )
