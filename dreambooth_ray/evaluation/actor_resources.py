"""What an actor beside a training asks of the cluster, and whether there is room for it."""

from typing import Any

import ray

from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.machines import ClusterConfig

MAX_RESTARTS = 3


def has_spare_cluster_device(cluster: ClusterConfig, resources: dict[str, float]) -> bool:
    """Whether an actor can run beside a training without what its workers wait for; pure.

    resources: the cluster's in total, as Ray counts them
    """
    resource_name = "GPU" if cluster.gpus else "CPU"
    return resources.get(resource_name, 0.0) >= cluster.span.max + 1


def build_actor_class(
    kind: type, gpu: bool, *, num_cpus: float = 1, max_restarts: int = MAX_RESTARTS
) -> Any:
    """`kind` as an actor with `num_cpus` cores, and one GPU if `gpu`.

    max_restarts: how often Ray itself replaces a dead process and repeats its call; 0 for a pool's
    """
    return ray.remote(
        num_cpus=num_cpus,
        num_gpus=1 if gpu else 0,
        max_restarts=max_restarts,
        max_task_retries=max_restarts,
        runtime_env=worker_environment(),
    )(kind)
