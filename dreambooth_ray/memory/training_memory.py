"""How much memory a training step takes, told from a model's configuration files alone.

Parameters and what autograd keeps are counted by `meta_step`, once for each model and setting.
"""

import contextlib
import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path

from dreambooth_ray import __version__
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.source import base_directory

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
COUNTED = ("trained", "frozen", "kept")
# Gradients of activations and the kernels' work space, on top of what autograd keeps: 1.3 to
# 1.5 were measured at the toy model's size, see tests/integration/test_footprint.py.
WORK_SPACE = 1.4


@dataclass(frozen=True)
class TrainingFootprint:
    """Bytes of one worker at the height of a step.

    states: weights, gradients and optimizer of what is trained; frozen: the other weights;
    activations: what the forward pass keeps for the backward pass, and what that works with
    """

    states_bytes: int
    frozen_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.states_bytes + self.frozen_bytes + self.activations_bytes


def footprint(config: Config, directory: Path, strategy: Strategy = "ddp") -> TrainingFootprint:
    """Memory of one worker training `directory` as `config` says, without loading a weight.

    raises: OSError or ValueError where the directory's configuration files can't be read
    """
    found = _counted(config, base_directory(directory))
    own, shared = BYTES_A_PARAMETER[strategy]
    # Of elastic workers the fewest, who share least.
    workers = config.cluster.span.min
    return TrainingFootprint(
        states_bytes=own * found["trained"] + shared * found["trained"] // workers,
        frozen_bytes=FROZEN_BYTES * found["frozen"],
        activations_bytes=int(WORK_SPACE * found["kept"]),
    )


def _counted(config: Config, directory: Path) -> dict[str, int]:
    """A step's count, from the user's cache where it was made before."""
    file = _cache_file(config, directory)
    try:
        found = json.loads(file.read_text())
        return {key: int(found[key]) for key in COUNTED}
    except (OSError, ValueError, TypeError, KeyError):
        # Seconds to import, which nobody need wait for twice.
        from dreambooth_ray.memory.meta_step import count  # noqa: PLC0415
    counted = count(config, directory, images_of_a_worker(config))
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(f".{uuid.uuid4().hex}")
        half.write_text(json.dumps(counted))
        half.replace(file)
    return counted


def _cache_file(config: Config, directory: Path) -> Path:
    """Named after all that a count depends on."""
    digest = hashlib.sha256(f"{__version__} {images_of_a_worker(config)}".encode())
    # A word that is learnt is a row of the text encoder's table.
    words = sorted({config.word(s) for s in config.all_subjects})
    digest.update(json.dumps([config.train.model_dump(mode="json"), words]).encode())
    digest.update(config.identifier.model_dump_json().encode())
    for path in sorted(directory.rglob("*config.json")):
        digest.update(path.relative_to(directory).as_posix().encode() + path.read_bytes())
    return user_cache_path("dreambooth-ray") / "footprints" / f"{digest.hexdigest()}.json"


def images_of_a_worker(config: Config) -> int:
    """Images of both kinds that one worker computes at once."""
    return config.images_a_step // config.cluster.span.max // config.train.accumulate
