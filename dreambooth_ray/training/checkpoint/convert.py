"""From the state of any strategy and any number of workers to plain weights, on any machine."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from dreambooth_ray.compat.deepspeed import write_universal_state
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.training.checkpoint.download import AVERAGE

_TAG, _UNIVERSAL = "checkpoint", "universal"
# Before the names of weights in a sharded state.
_WEIGHTS = "state_dict."


def load_trained_weights(state: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of each trained part in a saved state: {"unet": ..., "text_encoder": ...}.

    The averaged ones where there are any.
    raises: CheckpointError if the state is of a kind that nothing here reads
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _load_weights(state).items():
        part, _, weight_name = name.partition(".")
        parts.setdefault(part, {})[weight_name] = tensor
    return parts


def _load_weights(state: Path) -> dict[str, torch.Tensor]:
    checkpoint: dict[str, Any]
    if state.is_file():
        checkpoint = torch.load(state, map_location="cpu", weights_only=True)
        weights: dict[str, torch.Tensor] = checkpoint.get(AVERAGE) or checkpoint["state_dict"]
        return weights
    if (state / ".metadata").is_file():
        return _load_sharded_weights(state)
    if (state / _TAG).is_dir():
        from deepspeed.utils.zero_to_fp32 import (  # noqa: PLC0415  an extra
            get_fp32_state_dict_from_zero_checkpoint,
        )

        with contextlib.redirect_stdout(io.StringIO()):
            fp32_weights: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(
                str(state), tag=_TAG, exclude_frozen_parameters=True
            )
        return dict(fp32_weights)
    raise CheckpointError(f"{state} is no training state that this version knows")


def _load_sharded_weights(state: Path) -> dict[str, torch.Tensor]:
    """torch.distributed.checkpoint's format, its tensors put together in this process."""
    reader = FileSystemReader(state)
    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith(_WEIGHTS)
    }
    # Filled in place. Optimizer states, twice the size, are not asked for and not read.
    with warnings.catch_warnings():
        # That one process reads it alone is what is meant.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_distributed(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix(_WEIGHTS): tensor for name, tensor in weights.items()}


def make_universal(state: Path) -> None:
    """Add to a DeepSpeed state a form that any number of workers can load."""
    write_universal_state(state / _TAG, state / _UNIVERSAL)
