"""A cluster's HTTP interface: versions, hosts, capacity."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from cluster.cluster_registry import ClusterEntry
from dreambooth_ray.errors import CapacityError, ConfigError

TIMEOUT_S = 8.0


@dataclass(frozen=True)
class ClusterVersions:
    """Of the cluster's head; empty where it does not say."""

    ray: str
    python: str


@dataclass(frozen=True)
class ClusterCapacity:
    """What the live hosts have. memory_bytes and gpu_memory_bytes: of the largest one of each."""

    cpus: float
    gpus: float
    memory_bytes: int
    gpu_memory_bytes: int


class Dashboard:
    """One cluster's HTTP interface."""

    def __init__(self, entry: ClusterEntry) -> None:
        """raises ConfigError if its token can't be found."""
        token = entry.read_token()
        self._address = entry.address
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.verify: str | bool = entry.ca or True

    def get(self, path: str) -> Any:
        """JSON of a path.

        raises: CapacityError if nothing answers, ConfigError if the token is refused
        """
        url = f"{self._address}{path}"
        try:
            response = requests.get(
                url, headers=self.headers, verify=self.verify, timeout=TIMEOUT_S
            )
        except (requests.RequestException, OSError) as error:
            raise CapacityError(
                f"address={self._address!r} does not answer ({type(error).__name__}); check that "
                "the cluster is up, the port open and the certificate trusted"
            ) from error
        if response.status_code in (401, 403):
            raise ConfigError(
                f"address={self._address!r} refuses the token ({response.text.strip()[:80]}); set "
                "token_file, token_env or token to the cluster's own"
            )
        response.raise_for_status()
        return response.json()

    def versions(self) -> ClusterVersions:
        """Of Ray and Python on the head."""
        ray_version = str(self.get("/api/version").get("ray_version", ""))
        head_metadata = self.get("/api/v0/cluster_metadata").get("data", {})
        return ClusterVersions(
            ray_version,
            str(head_metadata.get("pythonVersion", head_metadata.get("python_version", ""))),
        )

    def hosts(self) -> list[dict[str, Any]]:
        """Summaries of the hosts that are alive."""
        host_summaries = self.get("/nodes?view=summary")["data"]["summary"]
        return [host for host in host_summaries if host["raylet"].get("state") == "ALIVE"]

    def capacity(self) -> ClusterCapacity:
        """Of all live hosts."""
        alive_hosts = self.hosts()
        host_resources = [h["raylet"].get("resourcesTotal", {}) for h in alive_hosts]
        host_memory_bytes = [int(h["mem"][0]) for h in alive_hosts if h.get("mem")]
        gpu_cards = [g for h in alive_hosts for g in h.get("gpus") or []]
        return ClusterCapacity(
            cpus=sum(r.get("CPU", 0.0) for r in host_resources),
            gpus=sum(r.get("GPU", 0.0) for r in host_resources),
            memory_bytes=max(host_memory_bytes, default=0),
            gpu_memory_bytes=max((int(g["memoryTotal"]) * 2**20 for g in gpu_cards), default=0),
        )


@contextmanager
def without_address_variables() -> Iterator[None]:
    """Ray's client lets the environment overrule the address it is given; not inside this block."""
    address_variables = {
        k: os.environ.pop(k) for k in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if k in os.environ
    }
    try:
        yield
    finally:
        os.environ.update(address_variables)
