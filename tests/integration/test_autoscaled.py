"""A run on a cluster that has no worker until one is asked for, by Ray's own autoscaler.

Its provider is the one that Ray tests the autoscaler with: hosts are raylets of this machine.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from cluster.cluster_registry import find_cluster
from cluster.dashboard import Dashboard
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from tests.integration.conftest import SMALL, dreambooth, kill_tree
from tests.waiting import wait_until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
    "rsync_exclude", "rsync_filter",
)  # fmt: skip
AUTOSCALING: dict[str, Any] = {
    "cluster_name": "grows",
    "max_workers": 2,
    "idle_timeout_minutes": 1,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "docker": {},
    "auth": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{name: [] for name in LISTS},
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def head(folder: Path, ray_folder: str) -> Iterator[tuple[str, str]]:
    """A head without CPUs whose autoscaler may add hosts; yields its address and token.

    ray_folder: for Ray's own files; names of sockets may not be long
    """
    file, token, port = folder / "autoscaling.json", secrets.token_hex(32), free_port()
    gcs = free_port()
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{gcs}"}
    file.write_text(json.dumps({**AUTOSCALING, "provider": provider}))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0",
        f"--autoscaling-config={file}", f"--port={gcs}", f"--dashboard-port={port}",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={free_port()}", "--disable-usage-stats",
    ]  # fmt: skip
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_TMPDIR": ray_folder,
    }  # fmt: skip
    with (folder / "head.log").open("w") as log:
        started = subprocess.Popen(
            command, stdout=log, stderr=log, text=True, env=os.environ | environment
        )
    try:
        yield f"http://127.0.0.1:{port}", token
    finally:
        kill_tree(started)


def hosts(dashboard: Dashboard) -> int:
    try:
        return len(dashboard.hosts())
    except (CapacityError, requests.RequestException, KeyError):
        return 0


def test_a_run_is_refused_for_want_of_hosts_unless_they_come_by_themselves(
    photos: Path, tmp_path: Path
) -> None:
    clusters, storage = tmp_path / "clusters.yaml", tmp_path / "storage"
    words = [
        "submit", "toy-robot", "--cluster", "grows", f"subject.photos={photos}",
        f"storage.uri={storage}", "run_id=grown", *SMALL,
    ]  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as ray_folder,
        head(tmp_path, ray_folder) as (address, token),
    ):
        about = {"address": address, "token": token}
        clusters.write_text(json.dumps({"grows": about}))  # JSON is YAML
        dashboard = Dashboard(find_cluster("grows", clusters))
        wait_until(lambda: hosts(dashboard) == 1)
        refused = dreambooth(*words, cwd=tmp_path)
        assert refused.returncode == 2
        assert "the cluster has 0" in refused.stderr and "autoscaled: true" in refused.stderr
        assert not storage.exists() or Store(str(storage)).names() == []

        clusters.write_text(json.dumps({"grows": {**about, "autoscaled": True}}))
        sent = dreambooth(*words, cwd=tmp_path)
        assert sent.returncode == 0, sent.stderr
        run = Store(str(storage)).sub(paths.run("grown"))
        wait_until(lambda: manifest.MANIFEST in run.names(paths.BUNDLE), 150)
