"""Which failures of workers are worth another try."""

from typing import Any

from ray.train import TrainingFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy

from dreambooth_ray.errors import DreamBoothError


class LastWords(FailurePolicy):  # type: ignore[misc]
    """Another policy's decisions, but an error that a person has to mend ends the run at once."""

    def __init__(self, otherwise: Any) -> None:
        super().__init__(otherwise.failure_config)
        self._otherwise = otherwise

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Raise for errors raised on purpose: the next try would raise the same."""
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(isinstance(failure, DreamBoothError) for failure in failures.values()):
            return FailureDecision.RAISE
        return self._otherwise.make_decision(training_failed_error)
