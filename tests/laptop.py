"""A host without Ray that sends commands to a cluster of hosts on this machine."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.local_cluster import CLUSTERS, LocalCluster
from cluster.local_object_store import BUCKET
from tests.integration.conftest import DREAMBOOTH
from tests.object_store import pointed_at

RUNS = f"s3://{BUCKET}/runs"


class Laptop:
    """A host without Ray that sends commands."""

    def __init__(self, cluster: LocalCluster, photos: Path) -> None:
        self.cluster, self.photos = cluster, photos
        cluster.add_client()

    def __call__(self, *words: str, check: bool = True) -> str:
        name = ["--cluster", "local", "--clusters", str(self.cluster.folder / CLUSTERS)]
        result = self.cluster.run_in_host(
            "client", [DREAMBOOTH, *words, *name], capture_output=True, text=True
        )
        assert not check or result.returncode == 0, result.stderr
        return str(result.stdout).strip()

    def submit(self, run_id: str, *settings: str) -> str:
        overrides = (f"subject.photos={self.photos}", f"run_id={run_id}", f"storage.uri={RUNS}")
        return self("submit", "toy-robot", *overrides, *settings)


@contextmanager
def laptop_and_cluster(photos: Path, hosts: int = 3, cpus: int = 2) -> Iterator[Laptop]:
    """Hosts and an object store for the length of the block, its keys in os.environ."""
    # Not below /tmp: a host has a /tmp of its own, and the laptop must find its photographs.
    home = Path(__file__).parents[1] / "out"
    home.mkdir(exist_ok=True)
    folder = home / f"cluster-{os.getpid()}"
    own = home / f"photos-{os.getpid()}"
    shutil.copytree(photos, own)
    try:
        cluster = LocalCluster.up(folder, hosts, cpus, s3=True)
        try:
            with pointed_at(cluster.s3_environment):
                yield Laptop(cluster, own)
        finally:
            cluster.down()
    finally:
        shutil.rmtree(own)
