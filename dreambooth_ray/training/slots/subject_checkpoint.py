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

from dreambooth_ray.compat.lightning_state import (
    build_lightning_checkpoint,
    read_trainer_loop_states,
)
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.training.checkpoint.download import AVERAGE, WEIGHTS
from dreambooth_ray.training.slots.slot_subject import MOMENTS, AdapterTrainingState, SlotSubject
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
    return read_trainer_loop_states(trainer)


def save_subject_checkpoint(subject: SlotSubject, denoiser_name: str, path: Path) -> None:
    """Write a subject's complete state. path: a local file, whose folder may have others beside"""
    training_state = subject.view_training_state()
    checkpoint = build_lightning_checkpoint(
        _read_fresh_loop_states(),
        training_state.step,
        _make_optimizer_state(subject, training_state),
        subject.scheduler_state,
        version("pytorch-lightning"),
    )
    checkpoint[WEIGHTS] = _prefix_weight_names(denoiser_name, training_state.weights)
    if subject.config.train.ema_decay:
        checkpoint[AVERAGE] = _prefix_weight_names(denoiser_name, training_state.average)
    DirectCheckpointIO().save_checkpoint(checkpoint, path)


def _make_optimizer_state(
    subject: SlotSubject, training_state: AdapterTrainingState
) -> dict[str, Any]:
    """As of an optimizer whose weights are those of the layers, in their order."""
    param_group_settings = subject.optimizer.state_dict()["param_groups"][0]
    optimizer_states_by_index: dict[int, dict[str, Tensor]] = {}
    if training_state.moments:
        for index, weight_name in enumerate(training_state.weights):
            optimizer_moments = {
                moment_name: training_state.moments[moment_name][weight_name].cpu().clone()
                for moment_name in MOMENTS
            }
            optimizer_states_by_index[index] = {
                "step": torch.tensor(float(training_state.update_count)),
                **optimizer_moments,
            }
    return {
        "state": optimizer_states_by_index,
        "param_groups": [
            param_group_settings | {"params": list(range(len(training_state.weights)))}
        ],
    }


def _prefix_weight_names(part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Copies: a view would be saved with all slots behind it.
    return {
        f"{part}.{name}": weight_tensor.detach().cpu().clone()
        for name, weight_tensor in weights.items()
    }


def load_subject_checkpoint(
    path: Path, denoiser_name: str, adapter: Mapping[str, Tensor]
) -> AdapterTrainingState:
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
    adapter_weights = {
        name: stored_weights[full_name] for full_name, name in names_by_full_name.items()
    }
    optimizer_states = checkpoint["optimizer_states"][0]["state"]
    optimizer_moments = {
        moment_name: {
            name: optimizer_states[index][moment_name] for index, name in enumerate(adapter)
        }
        for moment_name in MOMENTS
        if optimizer_states
    }
    stored_average = checkpoint.get(AVERAGE) or {}
    return AdapterTrainingState(
        int(checkpoint["global_step"]),
        adapter_weights,
        optimizer_moments,
        int(optimizer_states[0]["step"]) if optimizer_states else 0,
        {
            names_by_full_name[full_name]: weight_tensor
            for full_name, weight_tensor in stored_average.items()
        },
    )
