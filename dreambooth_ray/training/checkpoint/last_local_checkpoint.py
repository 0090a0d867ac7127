"""The last checkpoint of a training while its files are still on the host that saved it."""

from collections.abc import Mapping
from dataclasses import dataclass

from dreambooth_ray.storage.scratch import ScratchFolder
from dreambooth_ray.training.checkpoint.download import STATE, CheckpointFiles


@dataclass(frozen=True)
class LastLocalCheckpoint:
    """The last checkpoint of a training, committed, and its files still on the first host.

    digests: SHA-256 of each file as it was sent, by name
    """

    step: int
    scratch: ScratchFolder
    digests: Mapping[str, str]

    @property
    def files(self) -> CheckpointFiles:
        """As `verified_weights` takes them."""
        return CheckpointFiles(self.scratch.path / STATE, self.digests)
