from typing import Any

import pytest
import ray

from cluster.session import connection
from dreambooth_ray.config.machines import ClusterConfig


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray was started with."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **given: found.append(given))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


def test_a_local_ray_is_one_of_its_own_whatever_else_runs_here(asked: list[dict[str, Any]]) -> None:
    with connection(ClusterConfig(), 3):
        pass
    # Without "local", ray.init joins a `ray start` of this machine and refuses num_cpus.
    assert asked[0]["address"] == "local"
    assert asked[0]["num_cpus"] >= 3


def test_inside_of_a_job_its_cluster_is_meant(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with connection(ClusterConfig(), 3):
        pass
    assert asked[0]["address"] == "10.0.0.1:6379"
    assert "num_cpus" not in asked[0]
