"""A local Ray without the processes that one machine does not need, and with those it does.

`ray.init` starts an autoscaler's monitor, a log monitor and a dashboard, whatever it is told:
1.3 seconds of a start and 1.1 of an end. Without a log monitor workers' output stays in Ray's log
folder, which is where `log_to_driver=False` wants it. The raylet starts a process for each CPU, to
wait for work: as many as there will be are enough, and these can import what the work needs.

Private: Node.start_monitor, start_log_monitor and start_api_server of ray._private.node, get_node
and start_ray_process of ray._private.services, get_dashboard_dependency_error of
ray._private.utils; the raylet's option num_prestart_python_workers and its settings
preload_python_modules, raylet_client_connect_timeout_milliseconds and
raylet_client_num_connect_attempts.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from dreambooth_ray.compat.ray_environment import setting_default_environment_variables

_REGISTERED_TIMEOUT_S, _POLL_S = 30.0, 0.01
# The raylet connects to its object store, in a thread beside it. Where that listens a moment too
# late, one start in six, it sleeps a second. Together these are Ray's own ten.
_CONNECT_AGAIN = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}
_NUM_WAITING, _PRELOADS = "--num_prestart_python_workers=", "RAY_preload_python_modules"


@dataclass(frozen=True)
class PrestartedWorkers:
    """How many processes wait for work from the start, and the module that each process imports."""

    count: int
    module: str


@contextmanager
def only_needed_processes(
    on_started: Callable[[], object], waiting: PrestartedWorkers | None = None
) -> Iterator[None]:
    """A `ray.init` inside starts the GCS, a raylet, its agents and workers, and waits no longer.

    on_started: called when the raylet has been started and is only waited for
    waiting: one process for each CPU if None, which imports nothing
    For threads: nobody else may start a Ray in this process meanwhile.
    """
    from ray._private import node, services, utils  # noqa: PLC0415  takes 0.2 s

    wait_then_get_node = _make_wait_then_get_node(services.get_node, on_started)
    with ExitStack() as patch_stack:
        for patched_object, attribute_name, replacement_function in (
            (node.Node, "start_monitor", _start_nothing),
            (node.Node, "start_log_monitor", _start_nothing),
            (node.Node, "start_api_server", _start_nothing),
            # The host's agent then goes without what serves the dashboard.
            (utils, "get_dashboard_dependency_error", lambda: ImportError("no dashboard here")),
            (services, "get_node", wait_then_get_node),
        ):
            patch_stack.enter_context(
                mock.patch.object(patched_object, attribute_name, replacement_function)
            )
        patch_stack.enter_context(setting_default_environment_variables(_CONNECT_AGAIN))
        if waiting is not None:
            start_process = _make_start_process(services.start_ray_process, waiting.count)
            patch_stack.enter_context(
                mock.patch.object(services, "start_ray_process", start_process)
            )
            patch_stack.enter_context(
                setting_default_environment_variables({_PRELOADS: waiting.module})
            )
        yield


def _make_start_process(start_ray_process: Any, num_waiting: int) -> Any:
    """Starts a process of Ray; a raylet with so many waiting processes."""

    def start_process(command: list[str], *arguments: Any, **settings: Any) -> Any:
        command = [
            f"{_NUM_WAITING}{num_waiting}" if word.startswith(_NUM_WAITING) else word
            for word in command
        ]
        return start_ray_process(command, *arguments, **settings)

    return start_process


def _start_nothing(*_: Any, **__: Any) -> None:
    """In place of the start of a process."""


def _make_wait_then_get_node(get_node: Any, on_started: Callable[[], object]) -> Any:
    """Ask for the node once it is there: `get_node` itself sleeps a whole second in between."""
    import ray  # noqa: PLC0415

    def wait_then_get_node(gcs_address: str, node_id: str) -> Any:
        on_started()
        gcs_client = ray._raylet.GcsClient(address=gcs_address)
        deadline = time.monotonic() + _REGISTERED_TIMEOUT_S
        while time.monotonic() < deadline:
            if any(ray_id.hex() == node_id for ray_id in gcs_client.get_all_node_info()):
                break
            time.sleep(_POLL_S)
        return get_node(gcs_address, node_id)

    return wait_then_get_node
