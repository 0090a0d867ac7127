"""From the state of any strategy and any number of workers to plain weights, on any machine."""

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.training.checkpoint.retention import AVERAGE

_TAG, _UNIVERSAL = "checkpoint", "universal"


def trained_weights(state: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of each trained part in a saved state: {"unet": ..., "text_encoder": ...}.

    The averaged ones where there are any.
    raises: CheckpointError if the state is of a kind that nothing here reads
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _weights(state).items():
        part, _, rest = name.removeprefix("_forward_module.").partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _weights(state: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, Any]
    if state.is_file():
        saved = torch.load(state, map_location="cpu", weights_only=True)
        weights: dict[str, torch.Tensor] = saved.get(AVERAGE) or saved["state_dict"]
        return weights
    if (state / ".metadata").is_file():
        return _from_shards(state)
    if (state / _TAG).is_dir():
        from deepspeed.utils.zero_to_fp32 import (  # noqa: PLC0415  an extra
            get_fp32_state_dict_from_zero_checkpoint,
        )

        with contextlib.redirect_stdout(io.StringIO()):
            found: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(
                str(state), tag=_TAG, exclude_frozen_parameters=True
            )
        return dict(found)
    raise CheckpointError(f"{state} is no training state that this version knows")


def _from_shards(state: Path) -> dict[str, torch.Tensor]:
    """torch.distributed.checkpoint's format, its tensors put together in this process."""
    saved: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys={"state_dict"})  # type: ignore[no-untyped-call]
    _load_state_dict(saved, storage_reader=FileSystemReader(state), planner=planner, no_dist=True)
    weights: dict[str, torch.Tensor] = saved["state_dict"]
    return weights


def make_universal(state: Path) -> None:
    """Add to a DeepSpeed state a form that any number of workers can load."""
    from deepspeed.checkpoint import ds_to_universal  # noqa: PLC0415  an extra

    arguments = argparse.Namespace(
        input_folder=str(state / _TAG),
        output_folder=str(state / _UNIVERSAL),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(arguments)
