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
from dreambooth_ray.storage.file_hashes import cache_folder, cached_file_hash

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


def check_values(directory: Path, family: ModelFamily) -> None:
    """raises: ConfigError naming a file and a tensor that holds NaN or infinity"""
    for network_part in family.networks:
        for path in find_weights(directory / network_part.name, network_part.name).paths:
            digest = cached_file_hash(path)
            if digest in _finite or digest in _read_cache():
                continue
            if tensor_name := _find_nonfinite_tensor(path):
                raise ConfigError(
                    f"{path}: {tensor_name} holds what is no number (NaN, or infinite); copy the "
                    "file again, or take another model"
                )
            _finite.add(digest)
            _write_cache(digest)


def _find_nonfinite_tensor(path: Path) -> str:
    """The first tensor with such a value; "" where there is none."""
    tensor_infos = read_header(path)
    with path.open("rb") as stream:
        data_begin = 8 + int.from_bytes(stream.read(8), "little")
    for name, info in tensor_infos.items():
        if info["dtype"] in _EXPONENTS and _has_nonfinite_value(path, data_begin, info):
            return name
    return ""


def _has_nonfinite_value(path: Path, data_begin: int, info: dict[str, Any]) -> bool:
    integer_dtype, exponent_mask = _EXPONENTS[info["dtype"]]
    begin, end = info["data_offsets"]
    item_bytes = np.dtype(integer_dtype).itemsize
    for chunk_begin in range(begin, end, _CHUNK * item_bytes):
        count = min(_CHUNK, (end - chunk_begin) // item_bytes)
        bits = np.fromfile(path, integer_dtype, count, offset=data_begin + chunk_begin)
        if bool(((bits & exponent_mask) == exponent_mask).any()):
            return True
    return False


def _read_cache() -> list[str]:
    try:
        digests = json.loads((cache_folder() / _CACHE_FILE).read_text())
    except (OSError, ValueError, RuntimeError):  # a user without a home folder among them
        return []
    return digests if isinstance(digests, list) else []


def _write_cache(digest: str) -> None:
    with suppress(OSError, RuntimeError):
        path = cache_folder() / _CACHE_FILE
        digests = [*_read_cache(), digest][-_MAX_ENTRIES:]
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial_file = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial_file.write_text(json.dumps(digests))
            partial_file.replace(path)
        finally:
            partial_file.unlink(missing_ok=True)
