"""Launching the training workers through Ray Train."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig

from dreambooth_ray.compat.ray_policies import worker_failures
from dreambooth_ray.compat.ray_train import Trainer
from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import PERMANENT, DreamBoothError, StorageError
from dreambooth_ray.imports import pause_garbage_collection
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.lease_keeper import LeaseKeeper
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.restarts import RestartRecorder, cause_of
from dreambooth_ray.training.run_monitor import RunMonitor
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.checkpoint.kept_checkpoint import KeptCheckpoint
    from dreambooth_ray.training.step_evaluator import MakeStepEvaluator


@dataclass(frozen=True)
class WorkerHooks:
    """What workers do beside training; sent to them.

    on_trained: called in the first worker's process once training has come to an end, with the job
        and the state of the last checkpoint where it is still on the worker's host
    make_evaluator: of what evaluates weights between steps, in the first worker's process
    """

    on_trained: Callable[[WorkerJob, "KeptCheckpoint | None"], None] = lambda *_: None
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
    with tempfile.TemporaryDirectory(prefix="dreambooth-ray-train-") as scratch_folder:
        # Ray Train's own state: ours is all in the run, so it may stay on this machine.
        storage_path = run.uri if run.is_local else scratch_folder
        trainer = _make_trainer(job, cluster, restart_recorder, storage_path, hooks)
        with (
            RunMonitor(run, cluster, say, trainer.end) as run_monitor,
            lease.calling_on_loss(trainer.end),
        ):
            try:
                trainer.fit()
            except TrainingFailedError as error:
                lease.check()
                raise _explain_failure(error, restart_recorder.count, run) from error
        if run_monitor.reason is not None:
            raise DreamBoothError(
                f"{run_monitor.reason}; `dreambooth resume {run.uri}` goes on from the last "
                "checkpoint"
            )
        if run_monitor.is_stopping:
            raise DreamBoothError(
                f"stopped by SIGTERM with a checkpoint saved; `dreambooth resume {run.uri}` goes on"
            )


def _make_trainer(
    job: WorkerJob,
    cluster: ClusterConfig,
    restart_recorder: RestartRecorder,
    storage_path: str,
    hooks: WorkerHooks,
) -> Trainer:
    settings = asdict(job)
    # May hold keys, and Ray Train shows the configuration of its loop: these go with the function.
    storage_options = settings.pop("storage_options")

    def train_loop(settings: dict[str, Any]) -> None:
        # Here, not above: this process has no use for Lightning, which takes seconds to import.
        with pause_garbage_collection():
            from dreambooth_ray.training.worker import train_worker  # noqa: PLC0415

        job = WorkerJob(**settings, storage_options=storage_options)
        train_worker(job, on_trained=hooks.on_trained, make_evaluator=hooks.make_evaluator)

    worker_count_range = cluster.span
    return Trainer(
        train_loop,
        is_local=cluster.ray_address is None,
        restarts=restart_recorder,
        train_loop_config=settings,
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
    failures = worker_failures(error)
    for failure in failures:
        if isinstance(failure, PERMANENT):
            return failure
    # Some errors of Ray tell their whole story over many lines; the last says what it comes to.
    failure_cause = cause_of(failures) if failures else str(error)
    error_type = (
        StorageError if any(isinstance(f, StorageError) for f in failures) else DreamBoothError
    )
    return error_type(
        f"training failed in {run.uri} after {describe_count(num_restarts, 'restart')}: "
        f"{failure_cause}; `dreambooth resume {run.uri}` goes on from the last checkpoint "
        "once the cause is mended"
    )
