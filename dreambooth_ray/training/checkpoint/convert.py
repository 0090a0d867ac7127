"""From the state of any strategy and any number of workers to plain weights, on any machine."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from dreambooth_ray.compat.deepspeed import write_universal_state
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.tensor_files import LazyTensors, VerifiedTensors, open_tensors
from dreambooth_ray.storage.verified_file import VerifiedFile
from dreambooth_ray.training.checkpoint.download import (
    AVERAGE,
    WEIGHTS,
    CheckpointFiles,
    tensor_file,
)

_TAG, _UNIVERSAL = "checkpoint", "universal"
_SHARDED_PREFIX = f"{WEIGHTS}."
_BATCH_BYTES = 2**28


def load_trained_weights(state: Path) -> dict[str, Mapping[str, torch.Tensor]]:
    """Weights of each trained part of a saved state, read when they are asked for.

    {"unet": ..., "text_encoder": ...}, the averaged ones where there are any. Nobody holds the
    whole state: neither the optimizer's part of it, nor the weights twice.

    raises: CheckpointError if the state is of a kind that nothing here reads
    """
    return _group_weights_by_part(_open_weights(state))


@contextlib.contextmanager
def verified_weights(files: CheckpointFiles) -> Iterator[dict[str, Mapping[str, torch.Tensor]]]:
    """As `load_trained_weights`, of files that may be damaged.

    Weights in a file of their own are hashed as they are read, and at the block's end it is known
    whether they are whole. Others are read by the libraries that wrote them: verified before.

    raises: CheckpointError, at the latest at the block's end, if a file differs from its manifest
    """
    weights_file = _find_weights_file(files.state)
    if weights_file is None or weights_file.name not in files.digests:
        folder = files.state.parent
        for name, digest in files.digests.items():
            with contextlib.closing(VerifiedFile(folder / name, digest)) as verified_file:
                verified_file.verify()
        yield load_trained_weights(files.state)
        return
    with contextlib.closing(
        VerifiedTensors(weights_file, files.digests[weights_file.name])
    ) as tensors:
        yield _group_weights_by_part(tensors)
        tensors.verify()


def _group_weights_by_part(
    weights: Mapping[str, torch.Tensor],
) -> dict[str, Mapping[str, torch.Tensor]]:
    names_by_part: dict[str, dict[str, str]] = {}
    for full_name in weights:
        part_name, _, name = full_name.removeprefix("_forward_module.").partition(".")
        names_by_part.setdefault(part_name, {})[name] = full_name
    return {
        part_name: _view_part(weights, part_names)
        for part_name, part_names in names_by_part.items()
    }


def _view_part(weights: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> LazyTensors:
    return LazyTensors(names, lambda name: weights[names[name]])


def _open_weights(state: Path) -> Mapping[str, torch.Tensor]:
    if weights_file := _find_weights_file(state):
        return open_tensors(weights_file)
    if state.is_file():
        # Of an earlier version, all in one file: mapped, so that only the weights are read.
        checkpoint = torch.load(state, map_location="cpu", weights_only=True, mmap=True)
        weights: Mapping[str, torch.Tensor] = checkpoint.get(AVERAGE) or checkpoint[WEIGHTS]
        return weights
    if (state / ".metadata").is_file():
        return _open_distributed_weights(state)
    if (state / _TAG).is_dir():
        return _open_zero_weights(state)
    raise CheckpointError(f"{state} is no training state that this version knows")


def _find_weights_file(state: Path) -> Path | None:
    candidate_files = (tensor_file(state, key) for key in (AVERAGE, WEIGHTS))
    return next((path for path in candidate_files if path.is_file()), None)


def _open_zero_weights(state: Path) -> LazyTensors:
    """DeepSpeed's: stage 3 puts each weight together when asked, the others all of them at once."""
    from deepspeed.utils.zero_to_fp32 import (  # noqa: PLC0415  an extra
        get_fp32_state_dict_from_zero_checkpoint,
    )

    with contextlib.redirect_stdout(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(
            str(state), tag=_TAG, exclude_frozen_parameters=True, lazy_mode=True
        )
    return LazyTensors(weights, lambda name: weights[name].contiguous())


def _open_distributed_weights(state: Path) -> LazyTensors:
    """torch.distributed.checkpoint's: of each weight the pieces that workers wrote."""
    metadata_by_key = FileSystemReader(state).read_metadata().state_dict_metadata
    weight_metadata = {
        key.removeprefix(_SHARDED_PREFIX): tensor_metadata
        for key, tensor_metadata in metadata_by_key.items()
        if key.startswith(_SHARDED_PREFIX) and isinstance(tensor_metadata, TensorStorageMetadata)
    }
    return LazyTensors(sorted(weight_metadata), _ShardedReader(state, weight_metadata))


class _ShardedReader:
    """Reads weights a few hundred megabytes at a time: each look at a state takes its time."""

    def __init__(self, state: Path, weights: Mapping[str, TensorStorageMetadata]) -> None:
        self._state, self._weights, self._names = state, weights, sorted(weights)
        self._batch: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        """A weight; quick where they are asked for by their names in order."""
        if name not in self._batch:
            self._batch = self._read_weights_batch(name)
        return self._batch.pop(name)

    def _read_weights_batch(self, first: str) -> dict[str, torch.Tensor]:
        weight_by_name: dict[str, torch.Tensor] = {}
        size_bytes = 0
        for name in self._names[self._names.index(first) :]:
            tensor_metadata = self._weights[name]
            weight_tensor = torch.empty(
                tensor_metadata.size, dtype=tensor_metadata.properties.dtype
            )
            if weight_by_name and size_bytes + weight_tensor.nbytes > _BATCH_BYTES:
                break
            weight_by_name[name] = weight_tensor
            size_bytes += weight_tensor.nbytes
        tensors_to_load: dict[str, Any] = {
            f"{_SHARDED_PREFIX}{name}": w for name, w in weight_by_name.items()
        }
        with warnings.catch_warnings():
            # That it reads in this process alone, which is what no_dist asks for.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load_distributed(
                tensors_to_load, storage_reader=FileSystemReader(self._state), no_dist=True
            )
        return weight_by_name


def make_universal(state: Path) -> None:
    """Add to a DeepSpeed state a form that any number of workers can load."""
    write_universal_state(state / _TAG, state / _UNIVERSAL)
