import inspect

from ray.exceptions import ActorDiedError
from ray.train import ControllerError, FailureConfig, ScalingConfig, WorkerGroupError

from dreambooth_ray.compat.ray_policies import (
    WORKER_LOST,
    NoAutoscalerPolicy,
    RecoverableFailurePolicy,
    list_worker_errors,
)
from tests.unit.compat.private_api import find_private

USER, EXECUTION = "ray_policies.py", "ray.train.v2._internal.execution"


def test_ray_train_still_has_what_is_used_of_it() -> None:
    exceptions = find_private(
        "ray", "ray.train.v2._internal.exceptions", "WorkerGroupStartupFailedError",
        "WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError", user=USER,
    )  # fmt: skip
    assert set(exceptions) < set(WORKER_LOST)
    policy, retry, _ = find_private(
        "ray", f"{EXECUTION}.failure_handling", "FailurePolicy.make_decision",
        "FailureDecision.RETRY", "FailureDecision.RAISE", user=USER,
    )  # fmt: skip
    assert list(inspect.signature(policy).parameters) == ["self", "training_failed_error"]
    assert retry.value == "RETRY"
    find_private(
        "ray", f"{EXECUTION}.scaling_policy", "FixedScalingPolicy.after_controller_start",
        "FixedScalingPolicy._maybe_send_resource_request", user=USER,
    )  # fmt: skip


def test_without_an_autoscaler_workers_are_counted_all_the_same() -> None:
    policy = NoAutoscalerPolicy(ScalingConfig(num_workers=2))
    # Without a client it can't ask, and no actor is started that would be asked.
    policy.after_controller_start(None)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    assert policy._coordinator_client is None


class Restarts:
    """Records what it is asked, and allows as many restarts as it is told."""

    def __init__(self, num_allowed: int) -> None:
        self.num_allowed, self.causes = num_allowed, list[str]()
        self.failures: list[BaseException] = []

    def should_restart(self, failures: object) -> bool:
        self.failures += failures  # type: ignore[operator]
        self.num_allowed -= 1
        return self.num_allowed >= 0

    def record_restart(self, cause: str) -> None:
        self.causes.append(cause)


def test_failed_workers_are_the_runs_business_and_the_rest_is_rays() -> None:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2._internal.execution.failure_handling import create_failure_policy

    dead, startup = ActorDiedError(), WorkerGroupStartupFailedError("gone")
    restarts = Restarts(1)
    policy = RecoverableFailurePolicy(create_failure_policy(FailureConfig()), restarts)
    errors = (
        WorkerGroupError("x", {0: dead}), ControllerError(startup), ControllerError(TypeError("x")),
    )  # fmt: skip
    decisions = [policy.make_decision(error).name for error in errors]
    assert decisions == ["RETRY", "RAISE", "RAISE"]
    assert restarts.failures == [dead, startup]
    assert restarts.causes == []


def test_only_a_group_of_workers_has_failures_of_workers() -> None:
    bug = ValueError("x")
    assert list_worker_errors(WorkerGroupError("x", {0: bug})) == [bug]
    assert list_worker_errors(ControllerError(bug)) == []
