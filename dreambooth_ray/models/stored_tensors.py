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


def read_tensor_places(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors by name, and what the file says of itself; raises ConfigError."""
    header, metadata = read_header_and_metadata(path)
    with path.open("rb") as tensor_file:
        data_begin = 8 + int.from_bytes(tensor_file.read(8), "little")
    stored_tensors = {
        tensor_name: StoredTensor(
            tensor_info["dtype"],
            tuple(tensor_info["shape"]),
            *(data_begin + k for k in tensor_info["data_offsets"]),
        )
        for tensor_name, tensor_info in header.items()
    }
    if unsupported_name := next(
        (n for n, t in stored_tensors.items() if t.dtype not in _ITEM_BYTES), None
    ):
        raise ConfigError(
            f"{path}: {unsupported_name} is of type {stored_tensors[unsupported_name].dtype}, "
            "which is not trained or sampled; take a file in float16, bfloat16 or float32"
        )
    return stored_tensors, metadata


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
    for tensor_name, stored_tensor in ordered_tensors:
        end = offset + stored_tensor.end - stored_tensor.begin
        header[tensor_name] = {
            "dtype": stored_tensor.dtype, "shape": list(stored_tensor.shape),
            "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    header_json = json.dumps(header, separators=(",", ":")).encode()
    header_json += b" " * (-len(header_json) % 8)
    with target.open("wb") as target_file, source.open("rb") as source_file:
        target_file.write(len(header_json).to_bytes(8, "little") + header_json)
        if not whole:
            target_file.truncate(8 + len(header_json) + offset)
            return
        for _, stored_tensor in ordered_tensors:
            source_file.seek(stored_tensor.begin)
            if stored_tensor.is_transposed:
                target_file.write(
                    _transpose(
                        source_file.read(stored_tensor.end - stored_tensor.begin), stored_tensor
                    )
                )
                continue
            for begin in range(stored_tensor.begin, stored_tensor.end, _BLOCK_BYTES):
                target_file.write(source_file.read(min(_BLOCK_BYTES, stored_tensor.end - begin)))


def _transpose(data: bytes, tensor: StoredTensor) -> bytes:
    import numpy as np  # noqa: PLC0415  for this alone

    flat_values = np.frombuffer(data, dtype=f"u{_ITEM_BYTES[tensor.dtype]}")
    return flat_values.reshape(tensor.shape).T.tobytes()
