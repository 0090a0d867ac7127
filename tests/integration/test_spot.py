"""A host that is about to be taken away, as a cloud says it: Ray's own notice, to a real run."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.stop_request import request_stop
from tests.integration.conftest import Background

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing, and one host for the workers."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=3)
    yield cluster
    if ray.is_initialized():
        ray.shutdown()
    cluster.shutdown()


def drain(cluster: Cluster, node_id: str, deadline_s: int) -> None:
    """What a cloud's agent calls when a spot machine is reclaimed."""
    subprocess.run(
        [
            sys.executable, "-m", "ray.scripts.scripts", "drain-node",
            f"--address={cluster.address}", f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=reclaimed",
            f"--deadline-remaining-seconds={deadline_s}",
        ],
        check=True, timeout=120,
    )  # fmt: skip


def test_a_notice_makes_a_checkpoint_in_time(
    cluster: Cluster, in_background: Callable[..., Background]
) -> None:
    run = in_background(
        f"cluster.address={cluster.address}", "cluster.workers=2", "prior.count=0",
        "train.steps=100000", "checkpoint.every=100000", "sample.every=0",
    )  # fmt: skip
    store = Store(str(run.folder))
    run.wait_for_step(4)
    assert committed_steps(store) == []
    (worker_node,) = [node.node_id for node in cluster.worker_nodes]
    drain(cluster, worker_node, deadline_s=500)
    run.wait_until(lambda: committed_steps(store) != [], "a checkpoint before the time is up")
    request_stop(store)
    _, errors = run.process.communicate(timeout=120)
    assert "of the run's hosts will be taken away" in errors
    assert "a checkpoint is saved after step" in errors
