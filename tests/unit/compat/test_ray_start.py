import inspect
import os
from pathlib import Path

import pytest

from dreambooth_ray.compat.ray_start import PrestartedWorkers, only_needed_processes
from tests.unit.compat.private_api import check_source, find_private

SETTINGS = (
    "RAY_preload_python_modules",
    "RAY_raylet_client_connect_timeout_milliseconds",
    "RAY_raylet_client_num_connect_attempts",
    "RAY_JOB_ID",
)
NODE = ("Node.start_monitor", "Node.start_log_monitor", "Node.start_api_server")


def test_ray_still_has_what_is_used_of_it() -> None:
    user = "ray_start.py"
    find_private("ray", "ray._private.node", *NODE, user=user)
    (get_node,) = find_private("ray", "ray._private.services", "get_node", user=user)
    assert list(inspect.signature(get_node).parameters) == ["gcs_address", "node_id"]
    (error,) = find_private(
        "ray", "ray._private.utils", "get_dashboard_dependency_error", user=user
    )
    assert inspect.signature(error).parameters == {}
    start_raylet, start_process = find_private(
        "ray", "ray._private.services", "start_raylet", "start_ray_process", user=user
    )
    assert next(iter(inspect.signature(start_process).parameters)) == "command"
    names = ["start_ray_process(", '"--num_prestart_python_workers={}"']
    check_source("ray", start_raylet, names, user=user)
    find_private(
        "ray", "ray", "_raylet.GcsClient", "_raylet.InnerGcsClient.get_all_node_info", user=user
    )
    # These must be what `ray.init` calls, by these names.
    from ray._private import node

    starts = [f".{name.partition('.')[2]}(" for name in NODE]
    check_source("ray", node, [*starts, "services.get_node("], user=user)


def test_ray_is_as_it_was_after_the_block() -> None:
    from ray._private import node, services, utils

    def current() -> list[object]:
        return [
            *(getattr(node.Node, name.partition(".")[2]) for name in NODE),
            services.get_node, services.start_ray_process, utils.get_dashboard_dependency_error,
        ]  # fmt: skip

    before, variables = current(), dict(os.environ)
    with only_needed_processes(lambda: None, PrestartedWorkers(2, "a.module")):
        assert all(a is not b for a, b in zip(before, current(), strict=True))
        assert dict(os.environ) != variables
    assert current() == before
    assert dict(os.environ) == variables


def test_a_raylet_is_started_with_as_many_waiting_processes_as_there_will_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private import services

    commands: list[list[str]] = []
    monkeypatch.setattr(services, "start_ray_process", commands.append)
    with only_needed_processes(lambda: None, PrestartedWorkers(2, "a.module")):
        services.start_ray_process(["raylet", "--num_prestart_python_workers=16", "--head"])
    assert commands == [["raylet", "--num_prestart_python_workers=2", "--head"]]


def test_the_raylet_knows_what_it_is_told_by_the_environment() -> None:
    import ray

    program = Path(ray.__file__).parent / "core/src/ray/raylet/raylet"
    content = program.read_bytes()
    missing = [name for name in SETTINGS if name.encode() not in content]
    assert not missing, f"Ray {ray.__version__}: the raylet knows no {missing}; see ray_start.py"
