"""A model that a replica has loaded, and who samples with it."""

from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.config.adapter_mix import AdapterMix
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.sampling.engine import Engine

_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1}


def estimate_loaded_bytes(directory: Path, bytes_per_weight: int) -> int:
    """Bytes that a model's weights take once loaded, by the headers of its safetensors files.

    raises: ConfigError naming a file that is missing or cut off
    """
    return sum(
        size_bytes // _DTYPE_BYTES.get(dtype, 1) * bytes_per_weight
        for part in find_family(directory).networks
        for dtype, size_bytes in find_weights(directory / part.name, part.name)
        .count_bytes()
        .items()
    )


@dataclass
class LoadedModel:
    """An engine, and how many images are being sampled with it."""

    engine: Engine
    size_bytes: int
    base_hash: str | None
    num_users: int = 0


@dataclass(frozen=True)
class ModelLease:
    """The engine and the adapters that an image is sampled with.

    weights_sha256: of the model, and of its own adapter where it has one
    adapter_sha256s: of those that were asked for beside it, in their order
    """

    engine_id: str
    engine: Engine
    adapters: AdapterMix
    weights_sha256: str
    base_sha256: str | None
    adapter_sha256s: tuple[str, ...] = ()
