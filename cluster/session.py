"""The only place that connects to Ray or starts one."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext

from cluster import waiting_process
from dreambooth_ray.compat.ray_address import (
    RayAddressError,
    check_client_server,
    check_head,
    find_local_address,
)
from dreambooth_ray.compat.ray_start import PrestartedWorkers, only_needed_processes
from dreambooth_ray.config.allocator import setting_ray_process_environment
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError

_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S = 5.0, 5.0


@contextmanager
def session(
    config: Config, meanwhile: Callable[[], object] = lambda: None, *, imports_ahead: bool = False
) -> Iterator[None]:
    """Ray, for the length of the block: the cluster at its address, or a local one.

    meanwhile: what needs no Ray, such as large imports; done while a local one comes up
    imports_ahead: whether processes of a local one, as many as train, import torch meanwhile
    raises: ConfigError if cluster.address can't be reached
    """
    # With GPUs they don't: a process is told which are its own when it gets its work, and libraries
    # may look at all that there are when they are imported.
    uses_gpus = config.cluster.gpus or bool(config.prior.num_gpus)
    num_waiting_processes = config.cluster.span.max if imports_ahead and not uses_gpus else 0
    # A small machine may be asked for more processes than it has cores: they share.
    with ray_connection(
        config.cluster,
        config.num_workers_and_actors,
        meanwhile,
        num_waiting_processes=num_waiting_processes,
    ):
        yield


@contextmanager
def ray_connection(
    cluster: ClusterConfig,
    processes: int,
    meanwhile: Callable[[], object] = lambda: None,
    *,
    is_bare: bool = False,
    num_waiting_processes: int = 0,
) -> Iterator[None]:
    """Ray, as `session` has it, for any configuration with a cluster in it.

    processes: that are to run at once where a local Ray is started
    is_bare: its processes are as Python has them, and each actor of ours gets its environment by
        itself; for measurements beside others
    num_waiting_processes: of a local Ray, that wait with torch imported; 0: as many as there are
        CPUs, and nothing imported
    """
    check_cluster_is_reachable(cluster)
    address = cluster.ray_address
    _set_environment()
    import ray  # noqa: PLC0415  reads its environment when imported

    if address:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            raise ConfigError(
                f"{cluster.address_origin}={address!r}: the Ray there takes no driver ({error}); "
                f"check the address, or unset {cluster.address_origin} to start a local Ray"
            ) from error
        try:
            meanwhile()
            yield
        finally:
            ray.shutdown()
    else:
        environment_context = nullcontext() if is_bare else setting_ray_process_environment()
        with environment_context, _start_local_ray(processes, meanwhile, num_waiting_processes):
            _check_gpus(cluster)
            yield


def _check_gpus(cluster: ClusterConfig) -> None:
    """raises: ConfigError if GPUs are asked for and this machine, which won't grow, has none"""
    import ray  # noqa: PLC0415

    if cluster.gpus and not ray.cluster_resources().get("GPU"):
        raise ConfigError(
            "cluster.gpus=true: this machine has no GPU that Ray can see; set cluster.gpus=false, "
            "or cluster.address to a cluster that has some"
        )


def _set_environment() -> None:
    """Inherited by every process a local Ray starts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What Ray will do by itself one day: leave the GPUs of a process that asks for none as they
    # are. Until then each start prints a warning about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@contextmanager
def _start_local_ray(
    processes: int, meanwhile: Callable[[], object], num_waiting_processes: int
) -> Iterator[None]:
    """A Ray of this process's own, started in a thread: most of its start is waiting."""
    import ray  # noqa: PLC0415

    # The threads would take turns at Python's lock, 5 ms each, while there is Python to run.
    ray_waits_event = threading.Event()
    waiting_processes = (
        PrestartedWorkers(num_waiting_processes, waiting_process.__name__)
        if num_waiting_processes
        else None
    )

    def init_local_ray() -> None:
        with only_needed_processes(ray_waits_event.set, waiting_processes):
            ray.init(
                # Else it would join whatever `ray start` has left running on this machine.
                address="local",
                num_cpus=max(os.cpu_count() or 1, processes),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )

    # Ray sets this handler itself where it is started by the main thread: a process that is asked
    # to end ends Ray's processes first.
    is_main_thread = threading.current_thread() is threading.main_thread()
    if is_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with ThreadPoolExecutor(1, thread_name_prefix="ray start") as thread_pool:
        start_future = thread_pool.submit(init_local_ray)
        start_future.add_done_callback(lambda _: ray_waits_event.set())
        try:
            ray_waits_event.wait()
            meanwhile()
            start_future.result()
            yield
        finally:
            wait([start_future])
            ray.shutdown()


def check_run_cluster_is_reachable(config: Config) -> None:
    """As `check_cluster_is_reachable`, for a run's configuration."""
    check_cluster_is_reachable(config.cluster)


def check_cluster_is_reachable(cluster: ClusterConfig) -> None:
    """Ask once whether a Ray of this version answers at the address, wherever that comes from.

    Within 10 s; Ray itself would try for minutes. Nothing is asked where a local Ray is started.
    raises: ConfigError naming address and origin
    """
    address = cluster.ray_address
    if address is None:
        return
    address_origin = f"{cluster.address_origin}={address!r}"
    remedy = f"unset {cluster.address_origin} to start a local Ray"
    if address == "auto":
        address = find_local_address() or ""
        if not address:
            raise ConfigError(f"{address_origin}: no Ray was started on this machine; {remedy}")
        address_origin += f" (this machine's, {address})"
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address_origin} is the address of a dashboard or Jobs API; give the head as "
            f"host:6379 or ray://host:10001, send the run with `dreambooth submit`, or {remedy}"
        )
    uses_ray_client = address.startswith("ray://")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise ConfigError(
            f"{address_origin} is not of the form host:port or ray://host:port; {remedy}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{address_origin} can't be reached ({error}); check that the cluster is up and the "
            f"port open, or {remedy}"
        ) from error
    try:
        (check_client_server if uses_ray_client else check_head)(
            f"{host}:{port}", _ANSWER_TIMEOUT_S
        )
    except RayAddressError as error:
        raise ConfigError(f"{address_origin}: {error}; correct the address, or {remedy}") from error
