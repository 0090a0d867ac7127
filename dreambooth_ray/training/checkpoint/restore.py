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
from dreambooth_ray.training.checkpoint import convert, retention
from dreambooth_ray.training.checkpoint.save import WorkerRank
from dreambooth_ray.training.worker_messages import post


@dataclass(frozen=True)
class RestoredState:
    """Where a group of workers starts from; state is on each host at the same path."""

    step: int
    state: Path
    is_universal: bool


@contextmanager
def restored(
    run: Store, config: Config, model_hash: str, place: WorkerRank
) -> Iterator[RestoredState | None]:
    """The newest intact checkpoint on this host, for the length of the block; a collective call.

    raises: CheckpointError if there are some and none can be used
    """
    name = _agreed([uuid.uuid4().hex])[0]
    folder = Path(tempfile.gettempdir()) / f"dreambooth-restore-{name}"
    start = None
    try:
        if place.local_rank == 0:
            start = _bring(run, config, model_hash, folder, tell=place.rank == 0)
        first = _agreed([start])[0]
        if place.local_rank == 0 and start != first:
            raise CheckpointError(
                f"hosts found different checkpoints in {run.uri}: {start} and {first}; "
                "is its storage the same for all of them?"
            )
        _barrier()
        yield first
    finally:
        if place.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _bring(
    run: Store, config: Config, model_hash: str, folder: Path, tell: bool
) -> RestoredState | None:
    found = retention.restore_newest(
        run, folder, lambda t: post(run, f"warning: {t}") if tell else None
    )
    if found is None:
        return None
    strategy, world = config.train.strategy, _world_size()
    retention.check_fits(found, strategy, model_hash, run.uri)
    reshard = strategy == "deepspeed" and found.about.get("world_size") != world
    if reshard:
        convert.make_universal(found.state)
    return RestoredState(found.step, found.state, reshard)


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _barrier() -> None:
    """Other hosts may still be downloading."""
    if _world_size() > 1:
        distributed.barrier()


def _agreed(values: list[Any]) -> list[Any]:
    """The first worker's values, on all."""
    if _world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values
