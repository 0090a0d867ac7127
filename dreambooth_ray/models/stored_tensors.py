"""Tensors as bytes of safetensors files: copied from one to another without being loaded.

Nothing heavy is imported.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.weight_files import read_header_and_metadata

_BLOCK_BYTES = 2**24
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a file. begin, end: its bytes, from the file's beginning.

    is_transposed: there it is the transpose of a square matrix
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    is_transposed: bool = False


Parts = dict[str, dict[str, StoredTensor]]


def read_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors by name, and what the file says of itself; raises ConfigError."""
    header, metadata = read_header_and_metadata(path)
    with path.open("rb") as stream:
        data_begin = 8 + int.from_bytes(stream.read(8), "little")
    tensors = {
        name: StoredTensor(
            info["dtype"], tuple(info["shape"]), *(data_begin + k for k in info["data_offsets"])
        )
        for name, info in header.items()
    }
    if unsupported_name := next(
        (n for n, t in tensors.items() if t.dtype not in _ITEM_BYTES), None
    ):
        raise ConfigError(
            f"{path}: {unsupported_name} is of type {tensors[unsupported_name].dtype}, which is "
            "not trained or sampled; take a file in float16, bfloat16 or float32"
        )
    return tensors, metadata


def write_stored_tensors(
    source: Path, tensors: Mapping[str, StoredTensor], target: Path, whole: bool
) -> None:
    """Write tensors of one file to another, by name; whole: with their bytes, else a hole.

    In safetensors' own order: wide types first, so that each tensor is aligned.
    """
    ordered_tensors = sorted(
        tensors.items(), key=lambda item: (-_ITEM_BYTES[item[1].dtype], item[0])
    )
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered_tensors:
        end = offset + tensor.end - tensor.begin
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    header_json = json.dumps(header, separators=(",", ":")).encode()
    header_json += b" " * (-len(header_json) % 8)
    with target.open("wb") as out, source.open("rb") as stream:
        out.write(len(header_json).to_bytes(8, "little") + header_json)
        if not whole:
            out.truncate(8 + len(header_json) + offset)
            return
        for _, tensor in ordered_tensors:
            stream.seek(tensor.begin)
            if tensor.is_transposed:
                out.write(_transpose(stream.read(tensor.end - tensor.begin), tensor))
                continue
            for begin in range(tensor.begin, tensor.end, _BLOCK_BYTES):
                out.write(stream.read(min(_BLOCK_BYTES, tensor.end - begin)))


def _transpose(data: bytes, tensor: StoredTensor) -> bytes:
    import numpy as np  # noqa: PLC0415  for this alone

    numbers = np.frombuffer(data, dtype=f"u{_ITEM_BYTES[tensor.dtype]}")
    return numbers.reshape(tensor.shape).T.tobytes()
