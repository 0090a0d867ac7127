"""How much memory a training step takes, from a model's configuration files alone.

`meta_step` counts parameters and saved activations, once for each model and setting.
"""

import contextlib
import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path

from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.source import base_directory
from dreambooth_ray.version import __version__

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]

# Bytes a trained parameter costs a worker, in float32: (whole on every worker, shared by all).
# AdamW keeps two moments, 8 bytes; weight 4, gradient 4. A frozen parameter is its weight alone.
BYTES_A_PARAMETER: dict[Strategy, tuple[int, int]] = {
    "ddp": (16, 0),
    "zero1": (8, 8),
    "zero2": (4, 12),
    "zero3": (0, 16),
    "fsdp2": (0, 16),
}
FROZEN_BYTES = 4
COUNT_KEYS = ("trained", "frozen", "kept")
# Gradients of activations and the kernels' work space, on top of what autograd saves: 1.3 to
# 1.5 were measured at the toy model's size, see tests/integration/test_footprint.py.
WORK_SPACE = 1.4


@dataclass(frozen=True)
class TrainingFootprint:
    """Peak bytes of one worker during a step.

    states: weights, gradients and optimizer of what is trained; frozen: the other weights;
    activations: saved by the forward pass for the backward pass, and its work space
    """

    states_bytes: int
    frozen_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.states_bytes + self.frozen_bytes + self.activations_bytes


def estimate_footprint(
    config: Config, directory: Path, strategy: Strategy = "ddp"
) -> TrainingFootprint:
    """Memory of one worker training `directory` as `config` says, without loading a weight.

    raises: OSError or ValueError where the directory's configuration files can't be read
    """
    counts = _load_counts(config, base_directory(directory))
    own_bytes, shared_bytes = BYTES_A_PARAMETER[strategy]
    # With elastic workers, the smallest number: each holds the most.
    workers = config.cluster.span.min
    return TrainingFootprint(
        states_bytes=own_bytes * counts["trained"] + shared_bytes * counts["trained"] // workers,
        frozen_bytes=FROZEN_BYTES * counts["frozen"],
        activations_bytes=int(WORK_SPACE * counts["kept"]),
    )


def _load_counts(config: Config, directory: Path) -> dict[str, int]:
    """A step's counts, from the user's cache if they are there."""
    cache_path = _cache_file(config, directory)
    try:
        cached_counts = json.loads(cache_path.read_text())
        return {key: int(cached_counts[key]) for key in COUNT_KEYS}
    except (OSError, ValueError, TypeError, KeyError):
        # Imported only here: it takes seconds.
        from dreambooth_ray.memory.meta_step import count_step  # noqa: PLC0415
    counts = count_step(config, directory, images_per_worker(config))
    with contextlib.suppress(OSError):
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        partial = cache_path.with_suffix(f".{uuid.uuid4().hex}")
        partial.write_text(json.dumps(counts))
        partial.replace(cache_path)
    return counts


def _cache_file(config: Config, directory: Path) -> Path:
    """A path that depends on everything the counts depend on."""
    digest = hashlib.sha256(f"{__version__} {images_per_worker(config)}".encode())
    # A learned word is a row of the text encoder's table.
    words = sorted({config.word(s) for s in config.all_subjects})
    digest.update(json.dumps([config.train.model_dump(mode="json"), words]).encode())
    digest.update(config.identifier.model_dump_json().encode())
    for path in sorted(directory.rglob("*config.json")):
        digest.update(path.relative_to(directory).as_posix().encode() + path.read_bytes())
    return user_cache_path("dreambooth-ray") / "footprints" / f"{digest.hexdigest()}.json"


def images_per_worker(config: Config) -> int:
    """Images of both kinds in one worker's batch."""
    return config.images_a_step // config.cluster.span.max // config.train.accumulate
