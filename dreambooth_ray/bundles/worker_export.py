"""Bundles are made where training is done: hosts with room for a model, and the libraries at hand.

By the first training worker at its end, of the checkpoint that its host still has; else by a Ray
task. Whoever started the run may be on a small machine, and imports nothing for it.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from dreambooth_ray.actor_pool import find_own_error
from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.imports import pause_garbage_collection
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.model_mirror import locate_model
from dreambooth_ray.storage.fence import find_checkpoint, has_newer_holder
from dreambooth_ray.storage.store import Store, use_storage_options
from dreambooth_ray.training.run_state import read_run_state
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.models.components import Components
    from dreambooth_ray.training.checkpoint.last_local_checkpoint import LastLocalCheckpoint

_TASK_RETRIES = 3
# A model's parts from its directory.
LoadParts = Callable[[Path], "Components"]


def try_export_local_checkpoint(job: WorkerJob, checkpoint: "LastLocalCheckpoint | None") -> None:
    """Make the bundle of a run that this process has trained to its end.

    Nothing where evaluations are still to choose. What fails here is tried again, and said, by
    who started the run.
    """
    config = parse_config(job.config, job.run_uri, [])
    if config.choice.rule != "last":
        return
    with suppress(Exception):
        _export_unless_superseded(job, config, checkpoint, None)


def export_with_loaded_components(
    job: WorkerJob, checkpoint: "LastLocalCheckpoint | None", load: "LoadParts"
) -> None:
    """Make the bundle of a run that this process has trained, with parts that it has in memory.

    raises: CheckpointError if the checkpoint is damaged; StorageError
    """
    _export_unless_superseded(job, parse_config(job.config, job.run_uri, []), checkpoint, load)


def _export_unless_superseded(
    job: WorkerJob,
    config: Config,
    checkpoint: "LastLocalCheckpoint | None",
    load: "LoadParts | None",
) -> None:
    run_store = Store(job.run_uri)
    # What a holder that was followed still has in hand may count no more.
    if not has_newer_holder(run_store, job.lease):
        checkpoint_id = find_checkpoint(run_store, checkpoint.step) if checkpoint else None
        is_own_checkpoint = checkpoint_id is not None and checkpoint_id.lease == job.lease
        local_checkpoint = checkpoint if is_own_checkpoint else None
        _export_bundle(config, job.model_directory, job.run_uri, local_checkpoint, load)


def export_by_task(config: Config, directory: Path, run: Store) -> None:
    """Make the bundle of a trained run in a Ray worker, and wait for it.

    config: with photographs that every host can read
    raises: CheckpointError if its checkpoint is damaged; DreamBoothError
    """
    storage_options = dict(config.storage.options)
    export_task = ray.remote(
        num_cpus=1, max_retries=_TASK_RETRIES, runtime_env=worker_environment()
    )(_export_stored)
    try:
        model_location = str(directory), model_hash(directory)
        ray.get(export_task.remote(dump_config(config), model_location, run.uri, storage_options))
    except ray.exceptions.RayTaskError as error:
        raise find_own_error(error) from None
    except ray.exceptions.RayError as error:
        raise DreamBoothError(
            f"the bundle of {run.uri} can't be made: {error}; `dreambooth resume` tries again"
        ) from error


def _export_stored(
    config: str, model_location: tuple[str, str], run_uri: str, storage_options: dict[str, Any]
) -> None:
    """model_location: its directory, and its hash"""
    use_storage_options(run_uri, storage_options)
    model_path = locate_model(*model_location, run_uri)
    _export_bundle(parse_config(config, run_uri, []), str(model_path), run_uri, None)


def _export_bundle(
    config: Config,
    model_path: str,
    run_uri: str,
    checkpoint: "LastLocalCheckpoint | None",
    load: "LoadParts | None" = None,
) -> None:
    with pause_garbage_collection():
        from dreambooth_ray.bundles.bundle import export_bundle  # noqa: PLC0415

    run_store = Store(run_uri)
    run_state = read_run_state(run_store, config)
    if not run_state.is_trained:
        return
    has_bundle_step = (
        checkpoint is not None and checkpoint.step == run_state.bundled_checkpoint_step
    )
    checkpoint_files = checkpoint.files if checkpoint is not None and has_bundle_step else None
    export_kwargs = {"load": load} if load is not None else {}
    export_bundle(config, Path(model_path), run_store, run_state, checkpoint_files, **export_kwargs)
