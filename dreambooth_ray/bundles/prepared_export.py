"""One export: how it is written, and read back."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dreambooth_ray.bundles import read_back
from dreambooth_ray.models.tensor_files import TensorSource, open_tensor_sources, write_tensors


class PreparedExport(NamedTuple):
    """How a file or folder is written, and read back by its reader; `check` raises ConfigError."""

    save: Callable[[Path], None]
    check: Callable[[Path], None]


def write_single_weights_file(
    weights: Mapping[str, Tensor], dtype: torch.dtype, metadata: dict[str, str], out: Path
) -> None:
    """Write tensors by name into one file, in a dtype; raises ConfigError where it has no number"""
    tensor_sources = {name: TensorSource.of(w).as_type(dtype) for name, w in weights.items()}
    write_tensor_sources(tensor_sources, dtype, metadata, out)


def write_tensor_sources(
    sources: Mapping[str, TensorSource], dtype: torch.dtype, metadata: dict[str, str], out: Path
) -> None:
    """As `write_single_weights_file`, one tensor after the other."""
    read_back.refuse_overflow(open_tensor_sources(sources), dtype)
    write_tensors(out, sources, {"format": "pt", **metadata})
    with out.open("rb") as written_file:
        os.fsync(written_file.fileno())  # it is renamed to where nobody makes it again
