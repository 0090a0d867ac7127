"""What of Ray Train's helpers a run goes without; the names are held against Ray's own."""

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

from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.failure_policy import FailFastPolicy
from dreambooth_ray.training.restarts import RestartRecorder
from dreambooth_ray.training.trainer import Trainer

DATASETS, CLEANER = "DatasetsCallback", "PlacementGroupCleanerCallback"


def helpers(trainer: Any) -> set[str]:
    return {type(one).__name__ for one in trainer._create_default_callbacks()}


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def cluster(is_local: bool) -> ClusterConfig:
    return ClusterConfig(address=None if is_local else "10.0.0.1:6379")


def work() -> None:
    """Never called here."""


def make_trainer(is_local: bool, **settings: Any) -> Trainer:
    restarts = RestartRecorder(Store("memory://trainer"), 0)
    return Trainer(work, cluster=cluster(is_local), restarts=restarts, **settings)


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

    monkeypatch.setattr("dreambooth_ray.training.trainer.ControllerThread", thread)
    scaling = ScalingConfig(num_workers=workers)
    make_trainer(local_ray, scaling_config=scaling)._initialize_and_run_controller(
        scaling_policy=create_scaling_policy(scaling),
        failure_policy=create_failure_policy(FailureConfig()),
    )
    return controller_settings


def test_alone_asks_no_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = policies(monkeypatch, True, 2)
    policy = settings["scaling_policy"]
    # Without a client it can't ask, and no actor is started that would be asked.
    policy.after_controller_start(None)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    assert policy._coordinator_client is None
    assert isinstance(settings["failure_policy"], FailFastPolicy)


@pytest.mark.parametrize(("is_local", "workers"), [(False, 2), (True, (1, 2)), (False, (1, 2))])
def test_leaves_other_policies_alone(
    monkeypatch: pytest.MonkeyPatch, is_local: bool, workers: int | tuple[int, int]
) -> None:
    settings = policies(monkeypatch, is_local, workers)
    policy = type(settings["scaling_policy"])
    assert policy.__module__.startswith("ray.")
    assert (policy is FixedScalingPolicy) == (workers == 2)
