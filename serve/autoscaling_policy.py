"""How many replicas the waiting work is worth. Pure; Ray Serve's controller asks."""

import math
from typing import Any


def compute_replica_count(remaining_steps: float, target_steps: int) -> int:
    """Replicas for so many steps still to do, `target_steps` for each; 0 for none."""
    return math.ceil(remaining_steps / target_steps)


class StepsPolicy:
    """Ray Serve's autoscaling policy on the sum of remaining steps.

    Ray applies minimum, maximum and delays, and wakes a pool that is at zero by itself.
    """

    def __init__(self, target_steps: int) -> None:
        self.target_steps = target_steps

    def __call__(self, ctx: Any) -> tuple[float, dict[str, Any]]:
        """ctx: ray.serve.config.AutoscalingContext; returns (replicas, state)."""
        remaining_steps_by_replica = (ctx.aggregated_metrics or {}).get("remaining_steps", {})
        if not remaining_steps_by_replica:
            # Nothing is known: a replica that still loads is not to be sent home for it.
            return ctx.target_num_replicas, {}
        return compute_replica_count(
            sum(remaining_steps_by_replica.values()), self.target_steps
        ), {}
