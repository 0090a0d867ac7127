"""Two hosts that keep temporary files in different folders. Needs root."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.namespaces import HostNetwork
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from tests.integration.test_hosts import curve, start_training
from tests.laptop import RUNS, Laptop, laptop_and_cluster

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]


@pytest.fixture
def differing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    """Two hosts, one of which keeps temporary files elsewhere."""
    start = HostNetwork.start

    def start_with_own_folder(
        network: HostNetwork, name: str, index: int, folder: Path, command: Any, environment: Any
    ) -> Any:
        temporary = "/var/tmp" if index % 2 else "/tmp"
        return start(network, name, index, folder, command, {**environment, "TMPDIR": temporary})

    monkeypatch.setattr(HostNetwork, "start", start_with_own_folder)
    with laptop_and_cluster(photos, hosts=2, cpus=1) as laptop:
        yield laptop


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed"])
def test_hosts_whose_temporary_folders_differ_save_and_resume(
    differing: Laptop, strategy: str
) -> None:
    words = ["cluster.workers=2", f"train.strategy={strategy}", "train.steps=8"]
    words += ["checkpoint.every=4"]
    run, curves = Store(f"{RUNS}/runs/{strategy}"), []
    for _ in range(2):
        with start_training(differing, strategy, *words) as process:
            assert process.wait(400) == 0, (differing.photos / f"{strategy}.log").read_text()
        assert committed_steps(run) == [4, 8]
        curves.append(curve(strategy))
        # The second time it goes on from step 4.
        manifest.remove_artifact(run, paths.checkpoint(8))
        run.remove(paths.BUNDLE)
    assert curves[0] == curves[1]
