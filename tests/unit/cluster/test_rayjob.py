from pathlib import Path

import pytest
import yaml

from cluster.rayjob import RECIPE, render_rayjob, submit_rayjob
from dreambooth_ray.config.load import load_config, parse_config
from dreambooth_ray.errors import CapacityError, ConfigError

IMAGE = "registry.example.com/dreambooth-ray:1"


def test_a_recipe_becomes_a_job(photos: Path, tmp_path: Path) -> None:
    overrides = [f"subject.photos={photos}", f"storage.uri={tmp_path}", "cluster.workers=2"]
    recipe, job = render_rayjob(load_config("toy-robot", overrides), IMAGE, "team")
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


def test_gpus_keep_the_gpu_group(photos: Path, tmp_path: Path) -> None:
    overrides = [f"subject.photos={photos}", f"storage.uri={tmp_path}", "cluster.gpus=true"]
    _, job = render_rayjob(load_config("toy-robot", overrides), IMAGE, "team")
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {g["groupName"]: g["replicas"] for g in groups} == {"gpu": 2, "cpu": 1}


def test_what_is_missing_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("toy-robot", [f"subject.photos={photos}", f"storage.uri={tmp_path}"])
    with pytest.raises(ConfigError, match="--image is not given"):
        render_rayjob(config, "", "team")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapacityError, match="needs kubectl"):
        submit_rayjob(config, IMAGE, "team", apply=True)
