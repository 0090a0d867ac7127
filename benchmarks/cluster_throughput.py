"""Throughput on a Ray cluster that runs: `dreambooth bench train | serve --address ADDRESS`.

There is no peer and no ratio: the figures are of that cluster, with what else runs on it.
"""

import importlib.util
import sys
import uuid
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks.conditions import read_conditions, read_load_average
from benchmarks.theme import Profile
from cluster.session import ray_connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.storage.store import Store

# Theme: the module whose `measure` and `format_table` are of a cluster.
THEMES = {"train": "cluster_training", "serve": "cluster_serving"}
MAX_COUNTS = 4


@dataclass(frozen=True)
class ClusterSetting:
    """What is measured on a cluster.

    storage: URI of a folder that all hosts read and write, where a measurement has a folder of its
    own, which is removed afterwards; workers: numbers of training workers, or
    the last of them as the most replicas, empty: as many as there is room for
    """

    address: str
    storage: str
    model: str = "toyworld"
    workers: tuple[int, ...] = ()
    profile: Profile = "full"
    gpus: bool = False

    def pick(self, smoke: int, full: int) -> int:
        """A number by profile."""
        return smoke if self.profile == "smoke" else full

    @property
    def device(self) -> str:
        """What a worker or a replica has for itself, as Ray calls it."""
        return "GPU" if self.gpus else "CPU"


def run_cluster_benchmark(theme: str, setting: ClusterSetting) -> dict[str, Any]:
    """Measure a theme on a cluster; prints its table to standard error.

    returns: its record
    raises: ConfigError for a theme, address, storage or number of workers that can't be used
    """
    if theme not in THEMES:
        raise ConfigError(
            f"bench {theme} has no --address; on a cluster there are {', '.join(THEMES)}"
        )
    theme_module = import_module(f"benchmarks.{THEMES[theme]}")
    conditions = read_conditions()
    # Of this measurement alone: nobody's runs and subjects are beside its own.
    scratch_store = Store(setting.storage).sub(f"bench-{uuid.uuid4().hex[:12]}")
    with ray_connection(ClusterConfig(address=setting.address, gpus=setting.gpus), 0):
        hosts = describe_hosts()
        worker_counts = choose_counts(setting, sum(host[setting.device] for host in hosts))
        try:
            _check_host_access(scratch_store, setting.storage)
            theme_result = theme_module.measure(
                replace(setting, storage=scratch_store.uri), worker_counts
            )
        finally:
            scratch_store.remove("")
    record = {
        "theme": f"{theme} on a cluster",
        **theme_result,
        "hosts": hosts,
        "setting": asdict(setting) | {"storage": setting.storage.partition("://")[0]},
        "conditions": conditions,
        "load_average_after": read_load_average(),
    }
    print(theme_module.format_table(record), file=sys.stderr)
    return record


def describe_hosts() -> list[dict[str, Any]]:
    """CPUs, GPUs and memory of each host that is alive."""
    return [
        {
            "CPU": int(node["Resources"].get("CPU", 0)),
            "GPU": int(node["Resources"].get("GPU", 0)),
            "memory_bytes": int(node["Resources"].get("memory", 0)),
        }
        for node in ray.nodes()
        if node["Alive"]
    ]


def choose_counts(setting: ClusterSetting, num_devices: int) -> tuple[int, ...]:
    """Numbers of workers to measure, 1 first; raises ConfigError where there is no room."""
    if num_devices < 1:
        raise ConfigError(f"the cluster at {setting.address} has no {setting.device}")
    worker_counts = setting.workers
    if not worker_counts:
        worker_counts = tuple(range(1, num_devices + 1))
        if num_devices > MAX_COUNTS:
            powers_of_two = [2**k for k in range(num_devices.bit_length()) if 2**k < num_devices]
            worker_counts = (*powers_of_two, num_devices)
    if max(worker_counts) > num_devices:
        raise ConfigError(
            f"--workers={','.join(map(str, worker_counts))}: the cluster has {num_devices} "
            f"{setting.device}s, and each worker takes one"
        )
    return tuple(sorted({1, *worker_counts}))


def read_head_node_address() -> str:
    """Address of the host that the cluster's head runs on."""
    living_nodes = [node for node in ray.nodes() if node["Alive"]]
    head_nodes = [node for node in living_nodes if "node:__internal_head__" in node["Resources"]]
    return str((head_nodes or living_nodes)[0]["NodeManagerAddress"])


def _check_host_access(scratch_store: Store, storage: str) -> None:
    """raises: ConfigError unless every host has this package and reads what this process writes"""
    probe_file = ".probe"

    # Inside, so that it is sent as it is: hosts need not import what this module does.
    def find_host_problem(uri: str, name: str) -> str:
        if importlib.util.find_spec("benchmarks") is None:
            return "it needs dreambooth-ray[bench]"
        if Store(uri).exists(name):
            return ""
        return (
            f"it does not see --storage={storage!r}; give an object store, s3://..., or a folder "
            "that all hosts share"
        )

    scratch_store.check_writable()
    scratch_store.write(probe_file, b"1")
    problem_ref_by_host = {}
    for node in ray.nodes():
        if node["Alive"]:
            node_affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            remote_task = ray.remote(find_host_problem).options(
                num_cpus=0, scheduling_strategy=node_affinity
            )
            problem_ref_by_host[node["NodeManagerAddress"]] = remote_task.remote(
                scratch_store.uri, probe_file
            )
    for host_address, problem_object_ref in problem_ref_by_host.items():
        if problem := ray.get(problem_object_ref):
            raise ConfigError(f"host {host_address} can't take part: {problem}")
