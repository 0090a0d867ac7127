"""Hosts that are really separate, really die and really come back. Needs root and iproute2."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster
from dreambooth_ray.errors import ConfigError
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]

PLACES = """
import os, ray, socket, time
ray.init(address="auto", logging_level="ERROR")
@ray.remote(num_cpus=1)
def place():
    time.sleep(1)  # long enough that no host takes two
    return socket.gethostname(), "elsewhere" in os.listdir("/tmp")
print(*sorted(ray.get([place.remote() for _ in range(3)])))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    cluster = LocalCluster.up(tmp_path_factory.mktemp("local") / "cluster", 3)
    yield cluster
    cluster.down()


def test_every_host_is_its_own(cluster: LocalCluster) -> None:
    Path("/tmp/elsewhere").touch()
    try:
        result = cluster.run_in_host(
            "head", ["python", "-c", PLACES], capture_output=True, text=True
        )
    finally:
        Path("/tmp/elsewhere").unlink()
    names = sorted(h.name for h in cluster.hosts)
    assert result.stdout.strip() == " ".join(str((name, False)) for name in names), result.stderr


def test_a_client_without_the_token_is_refused(cluster: LocalCluster) -> None:
    cluster.add_client()
    probe = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]
    url = f"{cluster.dashboard_url}/api/version"
    without_token = cluster.run_in_host("client", [*probe, url], capture_output=True, text=True)
    with_token = cluster.run_in_host(
        "client",
        [*probe, "-H", f"Authorization: Bearer {cluster.token}", url],
        capture_output=True,
        text=True,
    )
    assert (without_token.stdout, with_token.stdout) == ("401", "200")


def test_a_killed_host_is_missed_and_replaced(cluster: LocalCluster) -> None:
    old = cluster.workers[0]
    new = cluster.replace(old.name)
    assert not old.is_alive
    cluster.wait_ready()
    assert new.address in cluster.nodes()
    assert old.address not in cluster.nodes()


def test_a_cut_cable_is_noticed(cluster: LocalCluster) -> None:
    victim = cluster.workers[-1]
    cluster.network.disconnect_host(victim)
    wait_until(lambda: victim.address not in cluster.nodes())
    cluster.network.reconnect_host(victim)
    cluster.replace(victim.name)
    cluster.wait_ready()


def test_a_slow_and_a_late_link(cluster: LocalCluster) -> None:
    victim = cluster.workers[0]
    connect = ["curl", "-s", "-o", "/dev/null", "-w", "%{time_connect}", cluster.dashboard_url]
    cluster.network.limit_bandwidth(victim, 256)
    assert cluster.run_in_host(victim.name, connect, capture_output=True).returncode == 0
    cluster.network.reconnect_host(victim)
    try:
        cluster.network.delay_packets(victim, 80)
    except ConfigError as error:
        pytest.skip(f"this kernel has no netem: {error}")
    seconds_text = cluster.run_in_host(victim.name, connect, capture_output=True, text=True).stdout
    cluster.network.reconnect_host(victim)
    assert float(seconds_text) >= 0.08
