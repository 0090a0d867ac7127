"""Settings that pods can't use are refused by key, before anything is rendered or applied."""

from pathlib import Path

import pytest

from cluster.kubernetes_runs import KubernetesRuns
from cluster.pod_checks import check_pod_settings, find_image_name_problem
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError

DIGEST = f"sha256:{'0a' * 32}"
IMAGE = f"registry.example.com/team/dreambooth-ray@{DIGEST}"
REMOTE = ("storage.uri=s3://bucket/runs", "subject.photos=s3://bucket/photographs/robot")


def make_config(*overrides: str) -> Config:
    return load_config("toy-robot", [*REMOTE, *overrides])


@pytest.fixture
def applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a kubectl leaves behind if it is called."""
    script, mark = tmp_path / "kubectl", tmp_path / "applied"
    script.write_text(f"#!/bin/sh\ntouch {mark}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return mark


# What is planted, and the key that the refusal begins with.
SETTINGS = {
    "storage.uri=out": "storage.uri='out'",
    "storage.uri=file:///out": "storage.uri='file:///out'",
    "storage.uri=memory://runs": "storage.uri='memory://runs'",
    "storage.options={key: mine, secret: mine}": "storage.options (key, secret)",
    "storage.scratch=/scratch": "storage.scratch='/scratch'",
    "subject.photos=photographs": "subject.photos='photographs'",
    "prior.folder=/class-images": "prior.folder='/class-images'",
    "model.uri=/models/stable-diffusion": "model.uri='/models/stable-diffusion'",
    "model.uri=weights/model.safetensors": "model.uri='weights/model.safetensors'",
    "model.vae=~/vae": "model.vae=",
    "model.text_encoder=./encoder": "model.text_encoder='./encoder'",
    "tracking.mlflow_uri=/mlflow": "tracking.mlflow_uri='/mlflow'",
    "cluster.address=10.0.0.1:6379": "cluster.address='10.0.0.1:6379'",
}


@pytest.mark.parametrize(("override", "key"), SETTINGS.items())
def test_a_setting_that_pods_cannot_use_is_refused(override: str, key: str, applied: Path) -> None:
    with pytest.raises(ConfigError) as error:
        KubernetesRuns("team").submit(make_config(override), IMAGE)
    assert str(error.value).startswith(key)
    assert "\n" not in str(error.value)
    assert not applied.exists()


def test_a_protocol_and_photographs_of_a_second_subject_have_keys_too(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("""
subjects:
- {photos: s3://bucket/one, identifier: sks, class_noun: robot}
- {photos: two, identifier: zwx, class_noun: robot}
choice: {rule: best, protocol: mine.yaml}
storage: {uri: s3://bucket/runs}
""")
    findings = check_pod_settings(load_config(str(recipe), []), IMAGE, "team")
    assert [finding.key for finding in findings] == ["subjects[1].photos", "choice.protocol"]


def test_several_mistakes_are_named_at_once() -> None:
    config = make_config("storage.uri=out", "subject.photos=photos")
    with pytest.raises(ConfigError, match=r"--image .*; also --namespace='Team' .*storage\.uri"):
        KubernetesRuns("Team").submit(config, "")


@pytest.mark.parametrize("namespace", ["", "Team", "team_a", "-team", "a" * 64, "team\n"])
def test_a_namespace_has_to_be_a_name(namespace: str) -> None:
    findings = list(check_pod_settings(make_config(), IMAGE, namespace))
    assert [finding.key for finding in findings] == ["--namespace"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("", "not given"),
        ("registry.example.com/dreambooth-ray:1", "no digest"),
        ("library/dreambooth-ray:1", "no digest"),
        ("registry.example.com:5000/dreambooth-ray", "no digest"),
        ("dreambooth-ray", "no version"),
        ("dreambooth-ray:latest", "no version"),
        ("registry.example.com/Dreambooth:1", "no name of an image"),
        ("registry.example.com/dreambooth ray:1", "no name of an image"),
        ("dreambooth-ray@sha256:abc", "64 digits"),
        (f"registry.example.com/dreambooth-ray@md5:{'0' * 64}", "64 digits"),
    ],
)
def test_an_image_has_to_stay_the_same(image: str, words: str) -> None:
    assert words in find_image_name_problem(image)


@pytest.mark.parametrize(
    "image",
    [IMAGE, f"dreambooth-ray@{DIGEST}", "dreambooth-ray:0.1.0-cpu",
     f"registry.example.com:5000/team/dreambooth-ray:1@{DIGEST}"],
)  # fmt: skip
def test_a_digest_or_an_image_of_the_nodes_own_is_taken(image: str) -> None:
    assert find_image_name_problem(image) == ""


def test_what_ships_the_hub_and_the_object_store_are_taken() -> None:
    for uri in ("toyworld", "owner/name", "owner/name@main", "s3://bucket/models/one"):
        assert list(check_pod_settings(make_config(f"model.uri={uri}"), IMAGE, "team")) == []


def test_a_folder_that_looks_like_a_model_of_the_hub_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    findings = list(check_pod_settings(make_config("model.uri=owner/name"), IMAGE, "team"))
    assert [finding.key for finding in findings] == ["model.uri"]
