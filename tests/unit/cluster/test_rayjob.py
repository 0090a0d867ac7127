import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.rayjob import (
    MAX_NAME_LENGTH,
    RECIPE,
    RUN_ID,
    RUN_URI,
    SUBMITTER,
    format_rayjob,
    name_rayjob,
    render_rayjob,
)
from dreambooth_ray.config.load import load_config, parse_config
from dreambooth_ray.config.section import ID_PATTERN
from tests.unit.cluster.test_pod_checks import IMAGE, REMOTE

RUN_IDS = st.from_regex(ID_PATTERN, fullmatch=True)


def test_a_recipe_becomes_a_job() -> None:
    recipe, job = render_rayjob(load_config("toy-robot", [*REMOTE]), IMAGE, "team")
    config = parse_config(recipe["data"][RECIPE], "the job", [])
    assert config.run_id
    assert recipe["metadata"]["namespace"] == job["metadata"]["namespace"] == "team"
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [(g["groupName"], g["replicas"], g["maxReplicas"]) for g in groups] == [("cpu", 2, 2)]
    text = yaml.safe_dump(job)
    assert "image: dreambooth-ray\n" not in text
    assert text.count(f"image: {IMAGE}") == 3
    assert f"name: {recipe['metadata']['name']}" in text
    assert "dreambooth-recipe" not in text


def test_gpus_keep_the_gpu_group() -> None:
    config = load_config("toy-robot", [*REMOTE, "cluster.gpus=true"])
    groups = render_rayjob(config, IMAGE, "team")[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {g["groupName"]: g["replicas"] for g in groups} == {"gpu": 2, "cpu": 1}


def test_workers_may_lie_between_bounds() -> None:
    config = load_config("toy-robot", [*REMOTE, "cluster.workers={min: 1, max: 2}"])
    text = format_rayjob(config, IMAGE, "team")
    job = list(yaml.safe_load_all(text))[1]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 2)


@given(RUN_IDS, RUN_IDS)
def test_names_are_valid_and_never_collide(run_id: str, other: str) -> None:
    name = name_rayjob(run_id, "s3://bucket/runs")
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= MAX_NAME_LENGTH
    assert (name == name_rayjob(other, "s3://bucket/runs")) == (run_id == other)


@pytest.mark.parametrize("other", ["my_dog", "My.Dog", "my-dog-", "my-dog" + "x" * 60])
def test_ids_that_read_alike_have_names_of_their_own(other: str) -> None:
    assert name_rayjob("my-dog", "s3://b/runs") != name_rayjob(other, "s3://b/runs")
    assert name_rayjob("x" * 80 + "1", "s3://b") != name_rayjob("x" * 80 + "2", "s3://b")


def test_one_id_in_two_storages_is_two_runs() -> None:
    assert name_rayjob("my-dog", "s3://one/runs") != name_rayjob("my-dog", "s3://two/runs")
    assert name_rayjob("my-dog", "s3://one/runs") == name_rayjob("my-dog", "s3://one/runs/")


def test_the_submitter_hands_on_what_the_job_is() -> None:
    _, job = render_rayjob(load_config("toy-robot", [*REMOTE]), IMAGE, "team")
    (submitter,) = job["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert submitter["name"] == SUBMITTER
    assert submitter["command"] == [
        "python",
        "-m",
        "cluster.job_submitter",
        job["spec"]["entrypoint"],
    ]


def test_a_job_says_which_run_it_is() -> None:
    _, job = render_rayjob(load_config("toy-robot", [*REMOTE, "run_id=My_dog"]), IMAGE, "team")
    annotations = job["metadata"]["annotations"]
    assert (annotations[RUN_ID], annotations[RUN_URI]) == ("My_dog", "s3://bucket/runs/runs/My_dog")
