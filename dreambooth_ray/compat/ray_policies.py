"""Of Ray Train: what its controller asks when workers fail and when it wants machines.

Private: ray.train.v2._internal's FailurePolicy, FailureDecision, FixedScalingPolicy and the
exceptions by which it says that a worker was lost.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

# How Ray says that a process or a host is gone.
WORKER_LOST = (
    RayError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
    WorkerGroupStartupFailedError,
)


class RestartDecider(Protocol):
    """Decides about a run's failures, and writes down the restarts that follow."""

    def should_restart(self, failures: Sequence[BaseException]) -> bool:
        """Whether workers that failed so are started again; if so, it is recorded."""

    def record_restart(self, cause: str) -> None:
        """Write down a restart that somebody else decided on."""


def list_worker_errors(error: TrainingFailedError) -> list[BaseException]:
    """What each worker that failed raised; empty where it was not workers that failed."""
    return list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []


class RecoverableFailurePolicy(FailurePolicy):  # type: ignore[misc]
    """Restarts what can go better, by the run's own record.

    Where no worker has failed, but there is no room for one or a host is being taken away, Ray
    Train's own policy decides.
    """

    def __init__(self, ray_policy: Any, restarts: RestartDecider) -> None:
        super().__init__(ray_policy.failure_config)
        self._ray_policy, self._restarts = ray_policy, restarts

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RETRY or RAISE."""
        worker_errors = list_worker_errors(training_failed_error)
        is_controller_error = isinstance(training_failed_error, ControllerError)
        if is_controller_error and isinstance(
            training_failed_error.controller_failure, WorkerGroupStartupFailedError
        ):
            worker_errors = [training_failed_error.controller_failure]
        if worker_errors:
            should_restart = self._restarts.should_restart(worker_errors)
            return FailureDecision.RETRY if should_restart else FailureDecision.RAISE
        decision = self._ray_policy.make_decision(training_failed_error)
        if decision is FailureDecision.RETRY and not is_controller_error:
            self._restarts.record_restart(" ".join(str(training_failed_error).split()))
        return decision


class NoAutoscalerPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """Asks no autoscaler for machines, as there is none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """No request, and no actor that would take it."""

    def _maybe_send_resource_request(self) -> None:
        """None."""
