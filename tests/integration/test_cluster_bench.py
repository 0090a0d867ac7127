"""`dreambooth bench train | serve --address` on three hosts, at the smallest sizes. Needs root."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local_cluster import LocalCluster
from tests.integration.conftest import DREAMBOOTH
from tests.laptop import RUNS

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]
HOSTS = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    # Not below /tmp: a host has a /tmp of its own.
    folder = Path(__file__).parents[2] / "out" / f"bench-cluster-{os.getpid()}"
    cluster = LocalCluster.up(folder, HOSTS, 1, s3=True)
    yield cluster
    cluster.down()


def bench(cluster: LocalCluster, theme: str, *words: str) -> Any:
    """`dreambooth bench` on the head."""
    command = [DREAMBOOTH, "bench", theme, "--address", cluster.address, "--profile", "smoke"]
    return cluster.run_in_host("head", [*command, *words], capture_output=True, text=True)


def measure(cluster: LocalCluster, theme: str) -> tuple[dict[str, Any], str]:
    """Its record, and what it says."""
    file = cluster.folder / f"{theme}.json"
    done = bench(cluster, theme, "--storage", RUNS, "--json", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr)
    text = file.read_text()
    # Ray may have had its say before.
    assert done.stdout.endswith(text)
    record: dict[str, Any] = json.loads(text)
    assert [host["CPU"] for host in record["hosts"]] == [1] * HOSTS
    return record, done.stderr


def test_training_is_measured_from_one_worker_to_all(cluster: LocalCluster) -> None:
    record, said = measure(cluster, "train")
    cases = record["cases"]
    assert [case["workers"] for case in cases] == [1, 2, 3]
    assert cases[0]["efficiency"] == 1
    assert all(case["images_per_s"]["median"] > 0 for case in cases)
    assert "| 3 | " in said


def test_replicas_go_up_with_the_load_and_down_again(cluster: LocalCluster) -> None:
    record, said = measure(cluster, "serve")
    cases = record["cases"]
    phases = [case["phase"] for case in cases]
    assert phases[:2] == ["one caller", "one replica"]
    assert "load rises" in phases
    assert f"{HOSTS} replicas" in phases
    assert phases[-1] == "one replica again"
    counts = [count for case in cases for count in case["replicas"]]
    assert (counts[0], max(counts), counts[-1]) == (1, HOSTS, 1)
    assert not any(case["failures"] for case in cases)
    assert all(case["images"] > 0 for case in cases)
    assert f"| {HOSTS} replicas |" in said


def test_storage_that_not_all_hosts_see_is_refused(cluster: LocalCluster) -> None:
    done = bench(cluster, "train", "--storage", "/tmp/of-the-head-alone")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "can't take part: it does not see --storage='/tmp/of-the-head-alone'" in last
    assert "give an object store" in last
