"""The last checkpoint of a training while its files are still on the host that saved it."""

from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.storage.scratch import ScratchFolder
from dreambooth_ray.training.checkpoint.download import STATE


@dataclass(frozen=True)
class KeptCheckpoint:
    """The last checkpoint of a training, committed, and its files still on the first host."""

    step: int
    scratch: ScratchFolder

    @property
    def state(self) -> Path:
        """As `load_trained_weights` takes it."""
        return self.scratch.path / STATE
