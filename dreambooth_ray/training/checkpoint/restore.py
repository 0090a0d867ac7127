"""How a group of workers starts from one checkpoint, whatever number of workers saved it."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint import convert, download
from dreambooth_ray.training.checkpoint.save import WorkerRank
from dreambooth_ray.training.worker_messages import post_message


@dataclass(frozen=True)
class RestoredState:
    """Where a group of workers starts from; state is on each host at the same path."""

    step: int
    state: Path
    is_universal: bool


@contextmanager
def restored_checkpoint(
    run: Store, config: Config, model_hash: str, worker_rank: WorkerRank
) -> Iterator[RestoredState | None]:
    """The newest intact checkpoint on this host, for the length of the block; a collective call.

    raises: CheckpointError if there are some and none can be used
    """
    name = _broadcast_values([uuid.uuid4().hex])[0]
    folder = Path(tempfile.gettempdir()) / f"dreambooth-restore-{name}"
    own_state = None
    try:
        if worker_rank.local_rank == 0:
            own_state = _download_checkpoint(
                run, config, model_hash, folder, warns=worker_rank.rank == 0
            )
        first_state = _broadcast_values([own_state])[0]
        if worker_rank.local_rank == 0 and own_state != first_state:
            raise CheckpointError(
                f"hosts found different checkpoints in {run.uri}: {own_state} and {first_state}; "
                "is its storage the same for all of them?"
            )
        _wait_for_workers()
        yield first_state
    finally:
        if worker_rank.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _download_checkpoint(
    run: Store, config: Config, model_hash: str, folder: Path, warns: bool
) -> RestoredState | None:
    checkpoint = download.restore_newest(
        run, folder, lambda text: post_message(run, f"warning: {text}") if warns else None
    )
    if checkpoint is None:
        return None
    strategy, world_size = config.train.strategy, _world_size()
    download.check_fits(checkpoint, strategy, model_hash, run.uri)
    reshard = strategy == "deepspeed" and checkpoint.about.get("world_size") != world_size
    if reshard:
        convert.make_universal(checkpoint.state)
    return RestoredState(checkpoint.step, checkpoint.state, reshard)


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _wait_for_workers() -> None:
    """Other hosts may still be downloading."""
    if _world_size() > 1:
        distributed.barrier()


def _broadcast_values(values: list[Any]) -> list[Any]:
    """The first worker's values, on all."""
    if _world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values
