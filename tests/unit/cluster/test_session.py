from typing import Any

import pytest
import ray

from cluster.session import connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import ConfigError


@pytest.fixture
def ray_arguments(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray was started with."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls


def test_a_local_ray_is_one_of_its_own_whatever_else_runs_here(
    ray_arguments: list[dict[str, Any]],
) -> None:
    with connection(ClusterConfig(), 3):
        pass
    # Without "local", ray.init joins a `ray start` of this machine and refuses num_cpus.
    assert ray_arguments[0]["address"] == "local"
    assert ray_arguments[0]["num_cpus"] >= 3


def test_inside_of_a_job_its_cluster_is_meant(
    ray_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with connection(ClusterConfig(), 3):
        pass
    assert ray_arguments[0]["address"] == "10.0.0.1:6379"
    assert "num_cpus" not in ray_arguments[0]


def test_gpus_that_this_machine_has_not_are_refused_by_name(
    ray_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ConfigError, match=r"cluster\.gpus=true: this machine has no GPU"):
        connection(ClusterConfig(gpus=True), 3).__enter__()
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    with connection(ClusterConfig(gpus=True), 3):
        pass
