"""Ray actors of evaluations."""

from typing import Any

import ray

from dreambooth_ray.config.allocator import worker_environment

ACTOR_RESTARTS = 3


def build_actor_class(kind: type, gpu: bool) -> Any:
    """`kind` as an actor with one core, and one GPU if `gpu`; a dead process is replaced."""
    return ray.remote(
        num_cpus=1,
        num_gpus=1 if gpu else 0,
        max_restarts=ACTOR_RESTARTS,
        max_task_retries=ACTOR_RESTARTS,
        runtime_env=worker_environment(),
    )(kind)
