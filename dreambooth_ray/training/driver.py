"""Launching the training workers through Ray Train."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig

from dreambooth_ray.compat.ray_policies import list_worker_errors
from dreambooth_ray.compat.ray_train import Trainer
from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import PERMANENT, DreamBoothError, StorageError
from dreambooth_ray.imports import pause_garbage_collection
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.lease_keeper import LeaseKeeper
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.restarts import RestartRecorder, describe_failure_cause
from dreambooth_ray.training.training_run_monitor import TrainingRunMonitor
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.checkpoint.last_local_checkpoint import LastLocalCheckpoint
    from dreambooth_ray.training.step_evaluator import MakeStepEvaluator


@dataclass(frozen=True)
class WorkerHooks:
    """What workers do beside training; sent to them.

    on_trained: called in the first worker's process once training has come to an end, with the job
        and the state of the last checkpoint where it is still on the worker's host
    make_evaluator: of what evaluates weights between steps, in the first worker's process
    """

    on_trained: Callable[[WorkerJob, "LastLocalCheckpoint | None"], None] = lambda *_: None
    make_evaluator: "MakeStepEvaluator | None" = None


_NO_HOOKS = WorkerHooks()


def run_workers(
    job: WorkerJob,
    cluster: ClusterConfig,
    run: Store,
    lease: LeaseKeeper,
    say: Callable[[str], None] = print,
    hooks: WorkerHooks = _NO_HOOKS,
) -> None:
    """Run the workers to the last step; worker deaths up to cluster.max_failures are survived.

    lease: of the run; the workers are ended if it is lost
    say: gets a line for the person now and then
    raises: LeaseLostError; DreamBoothError with the first worker's own words or what is missing
    """
    restart_recorder = RestartRecorder(run, cluster.max_failures)
    with tempfile.TemporaryDirectory(prefix="dreambooth-ray-train-") as temporary_folder:
        # Ray Train's own state: ours is all in the run, so it may stay on this machine.
        ray_storage_path = run.uri if run.is_local else temporary_folder
        ray_trainer = _make_ray_trainer(job, cluster, restart_recorder, ray_storage_path, hooks)
        with (
            TrainingRunMonitor(run, cluster, say, ray_trainer.end) as driver_watch,
            lease.calling_on_loss(ray_trainer.end),
        ):
            try:
                ray_trainer.fit()
            except TrainingFailedError as error:
                lease.check()
                raise _explain_failure(error, restart_recorder.count, run) from error
        if driver_watch.reason is not None:
            raise DreamBoothError(
                f"{driver_watch.reason}; `dreambooth resume {run.uri}` goes on from the last "
                "checkpoint"
            )
        if driver_watch.is_stopping:
            raise DreamBoothError(
                f"stopped by SIGTERM with a checkpoint saved; `dreambooth resume {run.uri}` goes on"
            )


def _make_ray_trainer(
    job: WorkerJob,
    cluster: ClusterConfig,
    restart_recorder: RestartRecorder,
    storage_path: str,
    hooks: WorkerHooks,
) -> Trainer:
    job_fields = asdict(job)
    # May hold keys, and Ray Train shows the configuration of its loop: these go with the function.
    storage_options = job_fields.pop("storage_options")

    def train_loop(job_fields: dict[str, Any]) -> None:
        # Here, not above: this process has no use for Lightning, which takes seconds to import.
        with pause_garbage_collection():
            from dreambooth_ray.training.worker import train_worker  # noqa: PLC0415

        worker_job = WorkerJob(**job_fields, storage_options=storage_options)
        train_worker(worker_job, on_trained=hooks.on_trained, make_evaluator=hooks.make_evaluator)

    worker_count_range = cluster.span
    return Trainer(
        train_loop,
        is_local=cluster.ray_address is None,
        restarts=restart_recorder,
        train_loop_config=job_fields,
        scaling_config=ScalingConfig(
            num_workers=(
                worker_count_range.max
                if worker_count_range.min == worker_count_range.max
                else (worker_count_range.min, worker_count_range.max)
            ),
            use_gpu=cluster.gpus,
            elastic_resize_monitor_interval_s=15,
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.gpus else "gloo"),
        run_config=RunConfig(
            name=paths.RAY_TRAIN,
            storage_path=storage_path,
            # Of workers: `restart_recorder` decides. Of what Ray Train does itself: no bound.
            failure_config=FailureConfig(max_failures=-1),
            worker_runtime_env=worker_environment(),
        ),
    )


def _explain_failure(error: TrainingFailedError, num_restarts: int, run: Store) -> DreamBoothError:
    worker_errors = list_worker_errors(error)
    for worker_error in worker_errors:
        if isinstance(worker_error, PERMANENT):
            return worker_error
    # Some errors of Ray tell their whole story over many lines; the last says what it comes to.
    failure_cause = describe_failure_cause(worker_errors) if worker_errors else str(error)
    error_class = (
        StorageError if any(isinstance(f, StorageError) for f in worker_errors) else DreamBoothError
    )
    return error_class(
        f"training failed in {run.uri} after {describe_count(num_restarts, 'restart')}: "
        f"{failure_cause}; `dreambooth resume {run.uri}` goes on from the last checkpoint "
        "once the cause is mended"
    )
