"""How a group of workers starts from one checkpoint, whatever number of workers saved it."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.scratch import ScratchFolder, named_scratch_path
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint import convert, download
from dreambooth_ray.training.checkpoint.save import WorkerRank
from dreambooth_ray.training.worker_messages import post_message


@dataclass(frozen=True)
class CheckpointToRestore:
    """Where a group of workers starts from; state is on this host, wherever its scratch is."""

    step: int
    state: Path
    is_universal: bool
    scratch: ScratchFolder | None = None

    def release(self) -> None:
        """Remove the files, once all workers have loaded them; by the host's first worker."""
        if self.scratch is not None:
            self.scratch.remove()


@contextmanager
def restored_checkpoint(
    run: Store, config: Config, model: download.BaseModel, worker_rank: WorkerRank
) -> Iterator[CheckpointToRestore | None]:
    """The newest intact checkpoint on this host, for the length of the block; a collective call.

    raises: CheckpointError if there are some and none can be used
    """
    scratch_name = f"restore-{_broadcast_values([uuid.uuid4().hex])[0]}"
    scratch_folder = None
    try:
        host_checkpoint = None
        if worker_rank.local_rank == 0:
            scratch_folder = ScratchFolder(scratch_name, config.storage.scratch)
            host_checkpoint = _download_checkpoint(
                run, config, model, scratch_folder.path, warns=worker_rank.rank == 0
            )
        checkpoint = _broadcast_values([host_checkpoint])[0]
        if worker_rank.local_rank == 0 and host_checkpoint != checkpoint:
            raise CheckpointError(
                f"hosts found different checkpoints in {run.uri}: {host_checkpoint} and "
                f"{checkpoint}; is its storage the same for all of them?"
            )
        _wait_for_workers()
        if checkpoint is None:
            yield None
        else:
            folder = named_scratch_path(scratch_name, config.storage.scratch)
            if checkpoint.stored_in is not None:
                folder = run.local_path(checkpoint.stored_in)
            yield CheckpointToRestore(
                checkpoint.step, folder / checkpoint.file, checkpoint.is_universal, scratch_folder
            )
    finally:
        if scratch_folder is not None:
            scratch_folder.remove()


@dataclass(frozen=True)
class _FoundCheckpoint:
    """What every host must have found alike.

    stored_in: the folder in the run's store that has its files, None for a host's scratch folder
    file: of the state, below that
    """

    step: int
    file: str
    is_universal: bool
    stored_in: str | None


def _download_checkpoint(
    run: Store, config: Config, model: download.BaseModel, folder: Path, warns: bool
) -> _FoundCheckpoint | None:
    checkpoint = download.download_newest_checkpoint(
        run, folder, lambda text: post_message(run, f"warning: {text}") if warns else None
    )
    if checkpoint is None:
        return None
    strategy, world_size = config.train.strategy, _count_workers()
    download.check_same_model_and_strategy(checkpoint, strategy, model, run.uri)
    state_path, is_universal = checkpoint.state, False
    if strategy == "deepspeed" and checkpoint.about.get("world_size") != world_size:
        state_path, is_universal = _copy_stored_state(state_path, folder), True
        convert.make_universal(state_path)
    if state_path.is_relative_to(folder):
        state_file = state_path.relative_to(folder).as_posix()
        return _FoundCheckpoint(checkpoint.step, state_file, is_universal, None)
    stored_folder = state_path.parent.relative_to(run.local_path()).as_posix()
    return _FoundCheckpoint(checkpoint.step, state_path.name, is_universal, stored_folder)


def _copy_stored_state(state: Path, folder: Path) -> Path:
    """The same state where it can be added to: a copy, if it is the stored one."""
    if state.is_relative_to(folder):
        return state
    shutil.copytree(state, folder / state.name)
    return folder / state.name


def _count_workers() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _wait_for_workers() -> None:
    """Other hosts may still be downloading."""
    if _count_workers() > 1:
        distributed.barrier()


def _broadcast_values(values: list[Any]) -> list[Any]:
    """The first worker's values, on all."""
    if _count_workers() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values
