"""Verbs on RayJobs: kubectl itself, an API server that lets in what our Role allows, a storage."""

import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from dreambooth_ray.cli import main
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.stop_request import is_stop_requested
from tests.integration.seaweed import Seaweed
from tests.kubernetes_api import KubernetesApi, Tree, serve_kubernetes_api
from tests.object_store import pointed_at
from tests.unit.cluster.test_pod_checks import IMAGE
from tests.waiting import wait_until

ACCESS = Path(__file__).parents[2] / "k8s" / "base" / "platform" / "access.yaml"
SUBMIT = ("submit", "toy-robot", "--no-preflight", f"--image={IMAGE}", "--apply")
Say = Callable[..., str]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """What our Role for users allows, and no more."""
    role = next(r for r in yaml.safe_load_all(ACCESS.read_text()) if r["kind"] == "Role")
    with serve_kubernetes_api(tmp_path, role["rules"]) as (served, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield served


@pytest.fixture
def storage(seaweed: Seaweed) -> Iterator[str]:
    with pointed_at(seaweed.environment):
        yield f"{seaweed.make_bucket('pods')}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Call the command line. Returns what it prints; of one that ends otherwise, code and error."""

    def call(*words: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dreambooth", *words, "--k8s"])
        with pytest.raises(SystemExit) as exit_info:
            main.main()
        printed = capsys.readouterr()
        code = exit_info.value.code
        return printed.out.strip() if not code else f"{code} {printed.out}{printed.err}".strip()

    return call


def submit(say: Say, storage: str, *overrides: str) -> str:
    photos = "subject.photos=s3://bucket/photographs/robot"
    return say(*SUBMIT, f"storage.uri={storage}", photos, "run_id=robot", *overrides)


def find_jobs(api: KubernetesApi) -> list[Tree]:
    return [tree for (resource, *_), tree in api.objects.items() if resource == "rayjobs"]


def find_job(api: KubernetesApi) -> Tree:
    (job,) = find_jobs(api)
    return job


def set_status(api: KubernetesApi, **status: str) -> None:
    api.set_status(find_job(api)["metadata"]["name"], **status)


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
STOPPED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
          "message": "the driver ended with exit code 2"}  # fmt: skip


def test_a_run_is_submitted_once_and_listed(api: KubernetesApi, say: Say, storage: str) -> None:
    assert submit(say, storage) == "robot"
    assert submit(say, storage) == "robot"
    job = find_job(api)
    assert sum(entry == "create rayjobs" for entry in api.asked) == 1
    uri = f"{storage}/{paths.run('robot')}"
    assert say("ls").split("\t") == ["robot", "pending", "checkpoint 0", uri]
    set_status(api, **RUNNING)
    assert "\trunning\t" in say("ls")
    assert "another configuration" in submit(say, storage, "train.steps=7")
    assert find_job(api)["metadata"]["uid"] == job["metadata"]["uid"]


def test_logs_are_those_of_its_submitters(api: KubernetesApi, say: Say, storage: str) -> None:
    submit(say, storage)
    assert "robot has printed nothing: pending" in say("logs", "robot")
    name = find_job(api)["metadata"]["name"]
    api.add_pod("another", "dreambooth", {"job-name": "another"}, "of another job\n")
    api.add_pod(f"{name}-x2k4q", "dreambooth", {"job-name": name}, "training\n")
    assert say("logs", "robot") == "training"


def test_a_run_is_watched_to_its_end(api: KubernetesApi, say: Say, storage: str) -> None:
    submit(say, storage)
    set_status(api, **FAILED)
    text = say("watch", "robot")
    assert text.startswith("1 step 0/")
    assert text.endswith("failed: AppFailed the driver ended with exit code 2")


def test_a_watcher_without_the_storage_hears_the_end(
    api: KubernetesApi, say: Say, storage: str, seaweed: Seaweed
) -> None:
    submit(say, storage)
    set_status(api, **STOPPED)
    with pointed_at({**seaweed.environment, "AWS_SECRET_ACCESS_KEY": "another"}):
        assert say("watch", "robot").splitlines() == ["no answer from storage", "succeeded"]


def test_a_run_stops_with_a_checkpoint_and_is_made_anew(
    api: KubernetesApi, say: Say, storage: str
) -> None:
    submit(say, storage)
    set_status(api, **RUNNING)
    run, before = Store(f"{storage}/{paths.run('robot')}"), find_job(api)

    def drive() -> None:
        wait_until(lambda: is_stop_requested(run))
        set_status(api, **STOPPED)

    driver = threading.Thread(target=drive)
    driver.start()
    assert say("stop", "robot") == "robot stopped"
    driver.join()
    assert say("stop", "robot") == "robot does not run: succeeded"
    assert say("resume", "robot") == "robot"
    after = find_job(api)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert (after["spec"], "status" in after) == (before["spec"], False)
    assert after["metadata"]["annotations"].items() >= {"dreambooth/run-id": "robot"}.items()


def test_a_stopped_run_goes_on_with_a_new_image(api: KubernetesApi, say: Say, storage: str) -> None:
    submit(say, storage)
    set_status(api, **STOPPED)
    new_image = IMAGE.replace("0a" * 32, "0b" * 32)
    assert submit(say, storage, f"--image={new_image}") == "robot"
    text = json.dumps(find_job(api)["spec"])
    assert new_image in text
    assert IMAGE not in text


def test_a_run_that_has_not_begun_is_taken_back(api: KubernetesApi, say: Say, storage: str) -> None:
    submit(say, storage)
    assert say("stop", "robot") == "robot had not begun and was taken back"
    assert find_job(api)["spec"]["suspend"] is True
    set_status(api, jobDeploymentStatus="Suspended")
    uid = find_job(api)["metadata"]["uid"]
    assert "\tsuspended\t" in say("ls")
    assert say("resume", "robot") == "robot"
    assert find_job(api)["spec"]["suspend"] is False
    assert find_job(api)["metadata"]["uid"] == uid


def test_a_storage_out_of_reach_keeps_nobody_from_stopping(
    api: KubernetesApi, say: Say, storage: str, seaweed: Seaweed
) -> None:
    submit(say, storage)
    set_status(api, **RUNNING)
    with pointed_at({**seaweed.environment, "AWS_SECRET_ACCESS_KEY": "another"}):
        assert "--now ends it without a last checkpoint" in say("stop", "robot")
        assert "suspend" not in find_job(api)["spec"]
        text = say("stop", "robot", "--now")
    assert text == "robot was killed; it goes on from its newest checkpoint"
    assert find_job(api)["spec"]["suspend"] is True


def test_what_has_ended_well_is_not_begun_again(api: KubernetesApi, say: Say, storage: str) -> None:
    submit(say, storage)
    set_status(api, **STOPPED)
    Store(f"{storage}/{paths.run('robot')}").write(f"{paths.BUNDLE}/{manifest.MANIFEST}", b"{}")
    uid = find_job(api)["metadata"]["uid"]
    assert say("resume", "robot") == submit(say, storage) == "robot"
    assert find_job(api)["metadata"]["uid"] == uid


def test_one_run_id_in_two_storages_is_asked_for_by_the_rayjobs_name(
    api: KubernetesApi, say: Say, storage: str
) -> None:
    submit(say, storage)
    submit(say, f"{storage}/other")
    text = say("logs", "robot")
    assert text.startswith("2 ")
    names = [job["metadata"]["name"] for job in find_jobs(api)]
    assert all(name in text for name in names)
    assert "printed nothing" in say("logs", names[0])


def test_names_that_yaml_takes_for_something_else_are_names(
    api: KubernetesApi, say: Say, storage: str
) -> None:
    photos = "subject.photos=s3://bucket/photographs/robot"
    words = [*SUBMIT, f"storage.uri={storage}", photos, "run_id='1e3'", "--namespace=n"]
    assert say(*words) == "1e3"
    assert find_job(api)["metadata"]["namespace"] == "n"


def test_what_is_forbidden_is_said_in_one_line(api: KubernetesApi, say: Say) -> None:
    api.rules = []
    text = say("ls")
    assert text.startswith("2 ")
    assert "cannot list rayjobs in dreambooth" in text
    assert len(text.splitlines()) == 1
