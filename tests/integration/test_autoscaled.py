"""A run on a cluster that has no worker until one is asked for, by Ray's own autoscaler.

Its provider is the one that Ray tests the autoscaler with: hosts are raylets of this machine.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import requests

from cluster.cluster_registry import find_cluster
from cluster.dashboard import Dashboard
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from tests.integration.conftest import SMALL, dreambooth
from tests.integration.jobs_head import jobs_head
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
        jobs_head(tmp_path, ray_folder, autoscaling=AUTOSCALING) as (address, token),
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
