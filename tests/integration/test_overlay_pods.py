"""The overlays for GPUs: every pod of theirs starts and is ready by its own probe, in test pods.

GPUs are asked for by nobody here: Ray's start command leaves them out, and the endpoint's replicas
are told to do without. A worker of an endpoint is ready once it serves, so one of two is enough.
"""

import copy
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from serve.auth import new_api_key
from tests.integration.test_k8s import Resource, resources
from tests.pods.images import IMAGE_VARIABLE, find_hindrance, mount_image, mount_servers
from tests.pods.operator import RayOperator, ServiceOperator, start_template
from tests.pods.site import Site
from tests.waiting import wait_until

HINDRANCE = find_hindrance()
pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(HINDRANCE), reason=HINDRANCE),
]
IMAGES = ("registry.example.com/dreambooth-ray:", "redis:")


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Path]]:
    weed = Path(sys.executable).with_name("weed")
    with mount_image(os.environ[IMAGE_VARIABLE]) as ours, mount_servers(weed) as servers:
        yield dict(zip(IMAGES, (ours, servers), strict=True))


def make_site(folder: Path, images: dict[str, Path], manifests: list[Resource]) -> Site:
    """A namespace with the Secrets that k8s/README.md tells to make by hand."""
    site = Site(folder, "over", "dreambooth", images)
    site.add_entries(manifests)
    site.add_secret("dreambooth-redis", {"password": secrets.token_hex(24)})
    site.add_secret(
        "dreambooth-keys", {"keys.yaml": f"- {{name: shop, sha256: {new_api_key()[1]}}}"}
    )
    for resource in manifests:
        if resource["kind"] == "StatefulSet":
            start_template(site, f"{resource['metadata']['name']}-0", resource).wait_until_ready()
    return site


@pytest.mark.parametrize("overlay", ["train-gpu", "shared-gpu"])
def test_every_pod_is_ready(overlay: str, tmp_path: Path, images: dict[str, Path]) -> None:
    manifests = resources(overlay)
    with make_site(tmp_path, images, manifests) as site:
        resource = next(r for r in manifests if r["kind"] in ("RayJob", "RayCluster"))
        cluster = RayOperator(site, copy.deepcopy(resource))
        cluster.wait_until_ready()
        assert all(pod.is_live() for pod in cluster.pods)
        cluster.stop()


def test_an_endpoint_is_ready_where_it_serves(tmp_path: Path, images: dict[str, Path]) -> None:
    manifests = resources("serve-gpu")
    with make_site(tmp_path, images, manifests) as site:
        resource = copy.deepcopy(next(r for r in manifests if r["kind"] == "RayService"))
        config = yaml.safe_load(resource["spec"]["serveConfigV2"])
        (application,) = config["applications"]
        # No GPU, and no bucket of anybody's.
        application["args"] |= {"replicas": {"minimum": 1}, "storage": {"uri": "/tmp/runs"}}
        resource["spec"]["serveConfigV2"] = yaml.safe_dump(config)
        service = ServiceOperator(site, resource)
        service.reconcile()
        assert service.head is not None
        service.head.wait_until_ready()
        service.deploy()

        def serves() -> bool:
            service.reconcile()
            return any(worker.is_ready() for worker in service.workers if worker)

        wait_until(serves, 1200, 2.0)
        assert len(service.pods) == 3
        assert all(pod.is_live() for pod in service.pods)
        service.stop()
