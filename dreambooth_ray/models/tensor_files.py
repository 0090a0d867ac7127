"""Weights in safetensors files, one tensor at a time: no more of a model than that is in memory.

Files are read, not mapped: mapped pages count as the process's own until the system takes them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.verified_file import VerifiedFile

SUFFIX = ".safetensors"
# As safetensors names and orders them: wide types first, so that each tensor is aligned.
_DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# safetensors' own order of types, by which it sorts.
_RANKS = ["BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64"]
_HEADER_ALIGNMENT = 8
# Of the header, before it.
_LENGTH_BYTES = 8


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for, and forgotten."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        """names: in the order in which they are best asked for"""
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_tensors(path: Path) -> LazyTensors:
    """The tensors of a safetensors file; raises CheckpointError if it is damaged."""
    try:
        safetensors_file: Any = safe_open(path, framework="pt", backend="pread")
        return LazyTensors(safetensors_file.keys(), safetensors_file.get_tensor)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error


@dataclass(frozen=True)
class _TensorRange:
    """A tensor in a file; begin and end: its bytes after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class VerifiedTensors(LazyTensors):
    """The tensors of a safetensors file that is hashed as they are read.

    Names are in the file's order, in which each byte is read once.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        """sha256: of the whole file, in hexadecimal; raises CheckpointError if it is damaged"""
        self._file = VerifiedFile(path, sha256)
        try:
            self._data_begin, self._ranges = self._read_header()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._file.close()
            raise CheckpointError(f"{path} is no safetensors file: {error!r}") from error
        super().__init__(self._ranges, self._read_tensor)

    def _read_header(self) -> tuple[int, dict[str, _TensorRange]]:
        data_begin = _LENGTH_BYTES + int.from_bytes(self._file.read(0, _LENGTH_BYTES), "little")
        header = json.loads(self._file.read(_LENGTH_BYTES, data_begin))
        header.pop("__metadata__", None)
        dtype_by_name = {name: dtype for dtype, name in _DTYPES.items()}
        tensor_ranges = {
            name: _TensorRange(
                dtype_by_name[tensor_entry["dtype"]],
                tuple(tensor_entry["shape"]),
                *tensor_entry["data_offsets"],
            )
            for name, tensor_entry in header.items()
        }
        return data_begin, dict(sorted(tensor_ranges.items(), key=lambda item: item[1].begin))

    def _read_tensor(self, name: str) -> Tensor:
        tensor_range = self._ranges[name]
        tensor_bytes = self._file.read(
            self._data_begin + tensor_range.begin, self._data_begin + tensor_range.end
        )
        if (
            len(tensor_bytes)
            != torch.Size(tensor_range.shape).numel() * tensor_range.dtype.itemsize
        ):
            raise CheckpointError(f"{name} has not the size that its file says: it is damaged")
        if not tensor_bytes:
            return torch.empty(tensor_range.shape, dtype=tensor_range.dtype)
        return torch.frombuffer(tensor_bytes, dtype=tensor_range.dtype).reshape(tensor_range.shape)

    def verify(self) -> None:
        """Read what nobody has asked for; raises CheckpointError if the file is damaged."""
        self._file.verify()

    def close(self) -> None:
        """No tensor can be read any more."""
        self._file.close()


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is read when it is written: its shape, the type it gets, and where it is."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSource":
        """One that is in memory, or mapped into it."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def as_type(self, dtype: torch.dtype) -> "TensorSource":
        """The same, to be written in another type."""
        return replace(self, dtype=dtype)

    @property
    def size_bytes(self) -> int:
        """Bytes of it in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def choose_tensor_sources(
    tensors: Mapping[str, Tensor], *stored: Mapping[str, Tensor]
) -> dict[str, TensorSource]:
    """Sources of a model's tensors: of those that the `stored` mappings have, from there.

    tensors: a state_dict, which tells shapes and types; stored: the first that has a name is asked
    """
    tensor_sources = {}
    for tensor_name, tensor in tensors.items():
        tensor_source = TensorSource.of(tensor)
        stored_mapping = next((mapping for mapping in stored if tensor_name in mapping), None)
        if stored_mapping is not None:
            tensor_source = replace(
                tensor_source, read=partial(stored_mapping.__getitem__, tensor_name)
            )
        tensor_sources[tensor_name] = tensor_source
    return tensor_sources


def open_tensor_sources(sources: Mapping[str, TensorSource]) -> LazyTensors:
    """The tensors of some sources as they are stored, each read when it is asked for."""
    return LazyTensors(sources, lambda name: sources[name].read())


def write_tensors(
    path: Path, sources: Mapping[str, TensorSource], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file as safetensors itself does, byte for byte, tensor by tensor.

    raises: CheckpointError if a tensor has another shape than its source says
    """
    ordered_tensor_names = sorted(
        sources,
        key=lambda tensor_name: (
            -_safetensors_dtype_order(sources[tensor_name].dtype),
            tensor_name,
        ),
    )
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor_name in ordered_tensor_names:
        source = sources[tensor_name]
        end = offset + source.size_bytes
        header[tensor_name] = {
            "dtype": _DTYPES[source.dtype], "shape": list(source.shape),
            "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    header_json = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    header_json += b" " * (-len(header_json) % _HEADER_ALIGNMENT)
    with path.open("wb") as target_file:
        target_file.write(len(header_json).to_bytes(_LENGTH_BYTES, "little") + header_json)
        for tensor_name in ordered_tensor_names:
            target_file.write(_read_tensor_buffer(tensor_name, sources[tensor_name]))


def _safetensors_dtype_order(dtype: torch.dtype) -> int:
    return _RANKS.index(_DTYPES[dtype])


def _read_tensor_buffer(name: str, source: TensorSource) -> Any:
    """The tensor's bytes, not copied, as a buffer."""
    tensor = source.read().detach().to("cpu", source.dtype).contiguous()
    if tuple(tensor.shape) != source.shape:
        raise CheckpointError(
            f"{name} has the shape {tuple(tensor.shape)} where {source.shape} is expected; it is "
            "of another model"
        )
    return tensor.reshape(-1).view(torch.uint8).numpy()
