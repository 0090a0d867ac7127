"""Launching the training workers through Ray Train."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig

from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.imports import large_imports
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.job import Job
from dreambooth_ray.training.trainer import Trainer
from dreambooth_ray.training.watch import Watch


def train(job: Job, cluster: ClusterConfig, run: Store, say: Callable[[str], None] = print) -> None:
    """Run the workers to the last step; worker deaths up to cluster.max_failures are survived.

    say: gets a line for the person now and then
    raises: DreamBoothError with the first worker's own words, or with what is missing
    """
    with tempfile.TemporaryDirectory(prefix="dreambooth-ray-train-") as scratch:
        # Ray Train's own state: ours is all in the run, so it may stay on this machine.
        trainer = _make_trainer(job, cluster, run.uri if run.is_local else scratch)
        with Watch(run, cluster, say) as watch:
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise _in_words(error, cluster, run) from error
            except SystemExit as error:
                # How Ray Train ends after SIGINT, by a person or by the watch.
                if watch.reason is None:
                    raise KeyboardInterrupt from error
                raise DreamBoothError(
                    f"{watch.reason}; `dreambooth resume {run.uri}` goes on from the last "
                    "checkpoint"
                ) from error
            if watch.is_stopping:
                raise DreamBoothError(
                    f"stopped by SIGTERM with a checkpoint saved; `dreambooth resume {run.uri}` "
                    "goes on"
                )


def _make_trainer(job: Job, cluster: ClusterConfig, storage_path: str) -> Trainer:
    settings = asdict(job)
    # May hold keys, and Ray Train shows the configuration of its loop: these go with the function.
    options = settings.pop("storage_options")

    def work(settings: dict[str, Any]) -> None:
        # Here, not above: Ray Train's controller loads this function too, and has no use for
        # Lightning and diffusers, which take it seconds to import.
        with large_imports():
            from dreambooth_ray.training.worker import train_worker  # noqa: PLC0415

        train_worker(Job(**settings, storage_options=options))

    span = cluster.span
    return Trainer(
        work,
        cluster=cluster,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=span.max if span.min == span.max else (span.min, span.max),
            use_gpu=cluster.gpus,
            elastic_resize_monitor_interval_s=15,
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.gpus else "gloo"),
        run_config=RunConfig(
            name=layout.RAY_TRAIN,
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env=worker_environment(),
        ),
    )


def _in_words(error: TrainingFailedError, cluster: ClusterConfig, run: Store) -> DreamBoothError:
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, DreamBoothError):
            return failure
    first = next(iter(failures.values()), error)
    return DreamBoothError(
        f"training failed in {run.uri} after {cluster.max_failures} restarts: {first}; "
        "`dreambooth resume` goes on from the last checkpoint once the cause is mended"
    )
