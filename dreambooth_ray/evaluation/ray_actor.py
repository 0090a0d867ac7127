"""Ray actors of evaluations."""

from typing import Any

import ray

from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.machines import ClusterConfig

ACTOR_RESTARTS = 3


def has_room_beside(cluster: ClusterConfig, resources: dict[str, float]) -> bool:
    """Whether an actor can run beside a training without what its workers wait for; pure.

    resources: the cluster's in total, as Ray counts them
    """
    kind = "GPU" if cluster.gpus else "CPU"
    return resources.get(kind, 0.0) >= cluster.span.max + 1


def build_actor_class(kind: type, gpu: bool, num_cpus: float = 1) -> Any:
    """`kind` as an actor with one core, and one GPU if `gpu`; a dead process is replaced."""
    return ray.remote(
        num_cpus=num_cpus,
        num_gpus=1 if gpu else 0,
        max_restarts=ACTOR_RESTARTS,
        max_task_retries=ACTOR_RESTARTS,
        runtime_env=worker_environment(),
    )(kind)
