"""What Ray Train's controller asks when workers have failed."""

from typing import Any

from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy

from dreambooth_ray.training.restarts import RestartRecorder


class FailFastPolicy(FailurePolicy):  # type: ignore[misc]
    """Restarts what can go better, by the run's own record; each restart is written down.

    Where no worker has failed, but there is no room for one or a host is being taken away, Ray
    Train's own policy decides.
    """

    def __init__(self, ray_policy: Any, restarts: RestartRecorder) -> None:
        super().__init__(ray_policy.failure_config)
        self._ray_policy, self._restarts = ray_policy, restarts

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RETRY or RAISE."""
        failures = list(getattr(training_failed_error, "worker_failures", {}).values())
        startup_failure = getattr(training_failed_error, "controller_failure", None)
        if isinstance(startup_failure, WorkerGroupStartupFailedError):
            failures = [startup_failure]
        if failures:
            should_restart = self._restarts.should_restart(failures)
            return FailureDecision.RETRY if should_restart else FailureDecision.RAISE
        decision = self._ray_policy.make_decision(training_failed_error)
        if decision is FailureDecision.RETRY and startup_failure is None:
            self._restarts.record(" ".join(str(training_failed_error).split()))
        return decision
