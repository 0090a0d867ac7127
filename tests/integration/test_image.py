"""The CPU image as a pod runs it: `make image` builds it and runs these."""

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.pods.images import IMAGE_VARIABLE, find_hindrance, measure_bytes, mount_image
from tests.pods.plain import make_pod_spec
from tests.pods.pod import Pod
from tests.pods.site import Site
from tests.waiting import wait_until

HINDRANCE = find_hindrance()
pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(HINDRANCE), reason=HINDRANCE),
]
IMAGE = os.environ.get(IMAGE_VARIABLE, "")
MAX_BYTES = 2_500_000_000
SMALL = ["train.steps=6", "prior.count=4", "prior.num_inference_steps=3", "sample.every=0"]
# Ray's own health check and the two that KubeRay asks of older versions and of endpoints.
HEALTH = "http://localhost:52365/api/healthz"
PROBE = "wget --tries 1 -T 4 -q -O- http://localhost:{} | grep success"


@pytest.fixture(scope="module")
def rootfs() -> Iterator[Path]:
    with mount_image(IMAGE) as folder:
        yield folder


@pytest.fixture
def site(tmp_path: Path, rootfs: Path) -> Iterator[Site]:
    with Site(tmp_path, "img", "dreambooth", {IMAGE: rootfs}) as made:
        yield made


def start_pod(site: Site, *command: str) -> Pod:
    pod = site.add_pod("one", {}, make_pod_spec(IMAGE, *command))
    pod.start()
    return pod


@pytest.fixture
def idle(site: Site) -> Pod:
    """A pod that does nothing, to run commands in."""
    return start_pod(site, "sleep", "infinity")


def run(pod: Pod, *command: str) -> str:
    done = pod.execute(*command, timeout_s=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_image_is_not_large(rootfs: Path) -> None:
    assert measure_bytes(rootfs) <= MAX_BYTES


def test_a_pod_is_as_locked_down_as_its_manifest_says(idle: Pod) -> None:
    status = run(idle, "cat", "/proc/self/status")
    words = {line.partition(":")[0]: line.split()[1:] for line in status.splitlines()}
    assert words["Uid"] == ["1000"] * 4
    assert words["CapEff"] == words["CapBnd"] == ["0" * 16]
    assert words["NoNewPrivs"] == ["1"]
    assert words["Seccomp"] == ["2"]
    assert idle.execute("touch", "/opt/venv/file").returncode != 0
    assert idle.execute("touch", "/tmp/file").returncode == 0


def test_the_command_and_its_libraries_are_there(idle: Pod) -> None:
    assert "train" in run(idle, "dreambooth", "--help")
    for module in ("gcsfs", "adlfs", "s3fs", "deepspeed", "benchmarks.themes", "cluster.rayjob"):
        run(idle, "python", "-c", f"import {module}")
    # Ray's launcher copies files by it; its dashboard and KubeRay's probes call the others.
    for tool in ("rsync", "ps", "wget"):
        run(idle, "which", tool)


def test_a_login_shell_finds_the_command(idle: Pod) -> None:
    assert run(idle, "bash", "-lc", "which dreambooth python").split() == [
        "/opt/venv/bin/dreambooth",
        "/opt/venv/bin/python",
    ]


def test_probes_of_kuberay_succeed_where_ray_runs(idle: Pod) -> None:
    run(idle, "ray", "start", "--head", "--dashboard-host=0.0.0.0", "--num-cpus=0",
        "--dashboard-agent-listen-port=52365")  # fmt: skip
    for path in ("52365/api/local_raylet_healthz", "8265/api/gcs_healthz"):
        wait_until(lambda p=path: idle.execute("bash", "-c", PROBE.format(p)).returncode == 0, 120)
    run(idle, "wget", "-q", "-O-", HEALTH)
    run(idle, "ray", "health-check", "--address", f"{idle.address}:6379")


def test_the_demo_runs(idle: Pod) -> None:
    run(idle, "dreambooth", "demo", "--out", "/tmp/demo", *SMALL)
    assert run(idle, "ls", "/tmp/demo/contact_sheet.png")


def test_two_workers_train(idle: Pod) -> None:
    run(idle, "dreambooth", "toyworld", "render", "--class-noun", "robot", "--out", "/tmp/photos")
    out = run(idle, "dreambooth", "train", "toy-robot.yaml", "subject.photos=/tmp/photos",
              "storage.uri=/tmp/out", "cluster.workers=2", *SMALL)  # fmt: skip
    assert "bundle" in run(idle, "ls", out.strip())


def test_the_openai_client_gets_an_image_from_outside(site: Site) -> None:
    pod = start_pod(site, "dreambooth", "serve", "--host", "0.0.0.0", "--port", "8000",
                    "storage.uri=/tmp/out")  # fmt: skip
    command = ["bash", "-c", "wget -q -O- http://localhost:8000/readyz"]

    def is_ready() -> bool:
        assert pod.is_running, pod.log
        return pod.execute(*command).returncode == 0

    wait_until(is_ready, 300)
    with openai.OpenAI(base_url=f"http://{pod.address}:8000/v1", api_key="none") as client:
        answer = client.images.generate(
            model="toyworld", prompt="a red robot", size="64x64",  # type: ignore[arg-type]
            extra_body={"num_inference_steps": 4},
        )  # fmt: skip
    assert answer.data
    assert answer.data[0].b64_json
