"""The only place that connects to Ray or starts one."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError

_CONNECT_TIMEOUT_S = 5.0


@contextmanager
def session(config: Config) -> Iterator[None]:
    """Ray, for the length of the block: the cluster at cluster.address, or a local one.

    raises: ConfigError if cluster.address can't be reached
    """
    # A small machine may be asked for more processes than it has cores: they share.
    with connection(config.cluster, config.processes):
        yield


@contextmanager
def connection(cluster: ClusterConfig, processes: int) -> Iterator[None]:
    """Ray, as `session` has it, for any configuration with a cluster in it.

    processes: that are to run at once where a local Ray is started
    """
    check_cluster(cluster)
    address = cluster.ray_address
    _set_environment()
    import ray  # noqa: PLC0415  reads its environment when imported

    try:
        if address:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                # Else it would join whatever `ray start` has left running on this machine.
                address="local",
                num_cpus=max(os.cpu_count() or 1, processes),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(
            f"cluster.address={address!r}: no Ray cluster answers there ({error}); check the "
            "address, or leave it out to start a local Ray"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _set_environment() -> None:
    """Inherited by every process a local Ray starts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Several workers share a machine: one thread each is faster than two that collide.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # What Ray will do by itself one day: leave the GPUs of a process that asks for none as they
    # are. Until then each start prints a warning about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def check_address(config: Config) -> None:
    """As `check_cluster`, for a run's configuration."""
    check_cluster(config.cluster)


def check_cluster(cluster: ClusterConfig) -> None:
    """Knock once at cluster.address, if there is one: Ray itself would try for minutes.

    raises: ConfigError if nothing answers
    """
    address = cluster.address
    if not address:
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise ConfigError(
            f"cluster.address={address!r} is not of the form host:port or ray://host:port"
        )
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(
            f"cluster.address={address!r} can't be reached ({error}); check that the cluster is "
            "up and the port open, or leave the key out to start a local Ray"
        ) from error
