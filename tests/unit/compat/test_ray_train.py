"""What of Ray Train's helpers a run goes without; the names are held against Ray's own."""

import inspect
import logging
import os
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2._internal.execution.scaling_policy import (
    FixedScalingPolicy,
    create_scaling_policy,
)

from dreambooth_ray.compat import ray_train
from dreambooth_ray.compat.ray_policies import NoAutoscalerPolicy, RecoverableFailurePolicy
from dreambooth_ray.compat.ray_train import Trainer
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.restarts import RestartRecorder
from tests.unit.compat.private_api import check_parameters, check_source, find_private

USER, INTERNAL = "ray_train.py", "ray.train.v2._internal"
DATASETS, CLEANER = "DatasetsCallback", "PlacementGroupCleanerCallback"


def helpers(trainer: Any) -> set[str]:
    return {type(one).__name__ for one in trainer._create_default_callbacks()}


def test_ray_train_still_has_what_is_used_of_it() -> None:
    find_private(
        "ray", "ray.train.torch", "TorchTrainer._create_default_callbacks",
        "TorchTrainer._initialize_and_run_controller", user=USER,
    )  # fmt: skip
    controller, run, _, _ = find_private(
        "ray", f"{INTERNAL}.execution.controller", "TrainController", "TrainController.run",
        "TrainController.get_result", "TrainController.worker_group_cls", user=USER,
    )  # fmt: skip
    assert inspect.iscoroutinefunction(run)
    check_source("ray", controller.__init__, ["self._worker_group"], user=USER)
    group, init, decorate, environment, _ = find_private(
        "ray", f"{INTERNAL}.execution.worker_group", "WorkerGroup",
        "WorkerGroup._init_train_context_on_workers", "WorkerGroup._decorate_worker_log_file_paths",
        "WorkerGroup._get_worker_runtime_env", "WorkerGroup.abort", user=USER,
    )  # fmt: skip
    parameters = ["workers", "sync_actor", "train_context_args"]
    check_parameters("ray", init, parameters, user=USER)
    check_parameters("ray", decorate, ["workers"], user=USER)
    check_parameters("ray", environment, ["custom_runtime_env"], user=USER)
    attributes = ("_train_run_context", "_storage_context", "_worker_callbacks_to_propagate")
    check_source("ray", group.__init__, [f"self.{name}" for name in attributes], user=USER)
    (init_worker,) = find_private(
        "ray", f"{INTERNAL}.execution.worker_group.worker", "RayTrainWorker.init_train_context",
        user=USER,
    )  # fmt: skip
    arguments = ["train_run_context", "distributed_context", "synchronization_actor",
                 "storage_context", "worker_callbacks", "controller_actor"]  # fmt: skip
    check_parameters("ray", init_worker, arguments, user=USER)
    find_private(
        "ray", f"{INTERNAL}.constants", "ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR",
        "ENABLE_PREEMPTION_WATCHER_ENV_VAR", "HEALTH_CHECK_INTERVAL_S_ENV_VAR", user=USER,
    )  # fmt: skip
    find_private("ray", f"{INTERNAL}.execution.scaling_policy", "FixedScalingPolicy", user=USER)
    # It must be what a group starts, by this name of that module.
    start, _ = find_private(
        "ray", f"{INTERNAL}.execution.worker_group.worker_group", "WorkerGroup._start_impl",
        "SynchronizationActor", user=USER,
    )  # fmt: skip
    check_source("ray", start, ["sync_actor = SynchronizationActor.options("], user=USER)


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def work() -> None:
    """Never called here."""


def make_trainer(is_local: bool, **settings: Any) -> Trainer:
    restarts = RestartRecorder(Store("memory://trainer"), 0)
    return Trainer(work, is_local=is_local, restarts=restarts, **settings)


@pytest.mark.parametrize("is_local", [True, False])
def test_drops_the_helpers_it_has_no_use_for(is_local: bool) -> None:
    theirs = helpers(TorchTrainer(work))
    assert {DATASETS, CLEANER} <= theirs
    assert helpers(make_trainer(is_local)) == theirs - {DATASETS, CLEANER}


def policies(
    monkeypatch: pytest.MonkeyPatch, local_ray: bool, workers: int | tuple[int, int]
) -> dict[str, Any]:
    """What the controller would be given."""
    controller_settings: dict[str, Any] = {}

    def thread(settings: dict[str, Any], is_local: bool) -> Any:
        controller_settings.update(settings, is_local=is_local)
        return SimpleNamespace(run=lambda: None)

    monkeypatch.setattr("dreambooth_ray.compat.ray_train.ControllerThread", thread)
    scaling = ScalingConfig(num_workers=workers)
    make_trainer(local_ray, scaling_config=scaling)._initialize_and_run_controller(
        scaling_policy=create_scaling_policy(scaling),
        failure_policy=create_failure_policy(FailureConfig()),
    )
    return controller_settings


def test_alone_asks_no_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = policies(monkeypatch, True, 2)
    assert isinstance(settings["scaling_policy"], NoAutoscalerPolicy)
    assert isinstance(settings["failure_policy"], RecoverableFailurePolicy)


@pytest.mark.parametrize(("is_local", "workers"), [(False, 2), (True, (1, 2)), (False, (1, 2))])
def test_leaves_other_policies_alone(
    monkeypatch: pytest.MonkeyPatch, is_local: bool, workers: int | tuple[int, int]
) -> None:
    settings = policies(monkeypatch, is_local, workers)
    policy = type(settings["scaling_policy"])
    assert policy.__module__.startswith("ray.")
    assert (policy is FixedScalingPolicy) == (workers == 2)


class _PlainClass:
    """An actor's class that takes down what it is asked for."""

    def options(self, **options: object) -> dict[str, object]:
        return options


@pytest.mark.parametrize("leaves_first", [0, 1])
def test_trainings_at_once_change_their_process_once(
    monkeypatch: pytest.MonkeyPatch, leaves_first: int
) -> None:
    """As `bench settings` has them: a run beside another, either of which may end first."""
    plain, logger = _PlainClass(), logging.getLogger("ray.train")
    monkeypatch.setattr(ray_train.worker_group, "SynchronizationActor", plain)
    level = logger.level
    stacks = [ExitStack(), ExitStack()]
    for stack in stacks:
        stack.enter_context(ray_train._PREPARED_PROCESSES[True])
    asked = ray_train.worker_group.SynchronizationActor.options(num_cpus=0)
    assert asked == {"num_cpus": 0, "runtime_env": ray_train._OWN_ENVIRONMENT}
    stacks[leaves_first].close()
    assert ray_train.worker_group.SynchronizationActor is not plain
    assert logger.level == logging.CRITICAL
    assert ray_train._SETTINGS.items() <= os.environ.items()
    stacks[1 - leaves_first].close()
    assert ray_train.worker_group.SynchronizationActor is plain
    assert logger.level == level
    assert not ray_train._SETTINGS.keys() & os.environ.keys()
