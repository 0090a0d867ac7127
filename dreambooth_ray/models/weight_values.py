"""Whether weights are numbers: one that is none makes every image and every loss none.

A file is read for it once: what was found whole is kept for this user by the file's hash, which is
kept too. Nothing heavy is imported.
"""

import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.weight_files import find_weights, read_header
from dreambooth_ray.storage.file_hashes import cached_file_hash, dreambooth_cache_folder

_CACHE_FILE, _MAX_ENTRIES = "finite-weights.json", 4096
_CHUNK = 2**22  # numbers read at once
# Of each type the integer that it is read as, and the bits that are all set where it is no number.
_EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
# Of this process: quicker than the folder, and there where that can't be used.
_finite: set[str] = set()


def check_finite_weights(directory: Path, family: ModelFamily) -> None:
    """raises: ConfigError naming a file and a tensor that holds NaN or infinity"""
    for network_part in family.networks:
        for path in find_weights(directory / network_part.name, network_part.name).paths:
            file_digest = cached_file_hash(path)
            if file_digest in _finite or file_digest in _read_cache():
                continue
            if tensor_name := _find_nonfinite_tensor(path):
                raise ConfigError(
                    f"{path}: {tensor_name} holds what is no number (NaN, or infinite); copy the "
                    "file again, or take another model"
                )
            _finite.add(file_digest)
            _write_cache(file_digest)


def _find_nonfinite_tensor(path: Path) -> str:
    """The first tensor with such a value; "" where there is none."""
    tensor_infos = read_header(path)
    with path.open("rb") as weights_file:
        data_begin = 8 + int.from_bytes(weights_file.read(8), "little")
    for tensor_name, tensor_info in tensor_infos.items():
        if tensor_info["dtype"] in _EXPONENTS and _has_nonfinite_value(
            path, data_begin, tensor_info
        ):
            return tensor_name
    return ""


def _has_nonfinite_value(path: Path, data_begin: int, tensor_info: dict[str, Any]) -> bool:
    integer_dtype, exponent_mask = _EXPONENTS[tensor_info["dtype"]]
    begin, end = tensor_info["data_offsets"]
    value_bytes = np.dtype(integer_dtype).itemsize
    for chunk_begin in range(begin, end, _CHUNK * value_bytes):
        num_values = min(_CHUNK, (end - chunk_begin) // value_bytes)
        bits = np.fromfile(path, integer_dtype, num_values, offset=data_begin + chunk_begin)
        if bool(((bits & exponent_mask) == exponent_mask).any()):
            return True
    return False


def _read_cache() -> list[str]:
    try:
        digests = json.loads((dreambooth_cache_folder() / _CACHE_FILE).read_text())
    except (OSError, ValueError, RuntimeError):  # a user without a home folder among them
        return []
    return digests if isinstance(digests, list) else []


def _write_cache(digest: str) -> None:
    with suppress(OSError, RuntimeError):
        cache_file = dreambooth_cache_folder() / _CACHE_FILE
        digests = [*_read_cache(), digest][-_MAX_ENTRIES:]
        cache_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary_file = cache_file.with_name(f"{cache_file.name}.{uuid.uuid4().hex}.partial")
        try:
            temporary_file.write_text(json.dumps(digests))
            temporary_file.replace(cache_file)
        finally:
            temporary_file.unlink(missing_ok=True)
