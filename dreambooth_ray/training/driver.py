"""Launching the training workers through Ray Train."""

import os
from dataclasses import asdict
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from dreambooth_ray.config.schema import ClusterConfig
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.job import Job

# Large blocks are kept and used again instead of being mapped anew for every tensor:
# measured 8 % off a step at toy size.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
}


def _worker(settings: dict[str, Any]) -> None:
    # Here, not above: Ray Train's controller loads this function too, and has no use for
    # Lightning and diffusers, which take it seconds to import.
    from dreambooth_ray.training.worker import train_worker  # noqa: PLC0415

    train_worker(Job(**settings))


def train(job: Job, cluster: ClusterConfig, run: Store) -> None:
    """Run the workers to the last step; worker deaths up to cluster.max_failures are survived.

    raises: DreamBoothError with the first worker's own words
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    path, filesystem = run.arrow()
    trainer = TorchTrainer(
        _worker,
        train_loop_config=asdict(job),
        scaling_config=ScalingConfig(num_workers=cluster.workers, use_gpu=cluster.gpus),
        torch_config=TorchConfig(backend="nccl" if cluster.gpus else "gloo"),
        run_config=RunConfig(
            name=layout.RAY_TRAIN,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env={"env_vars": {**ALLOCATOR, "OMP_NUM_THREADS": "1"}},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {})
        for failure in failures.values():
            if isinstance(failure, DreamBoothError):
                raise failure from error
        first = next(iter(failures.values()), error)
        raise DreamBoothError(
            f"training failed in {run.uri} after {cluster.max_failures} restarts: {first}; "
            "`dreambooth resume` goes on from the last checkpoint once the cause is mended"
        ) from error
