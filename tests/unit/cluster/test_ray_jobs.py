from pathlib import Path

import pytest
from ray.runtime_env import RuntimeEnv

from cluster.cluster_registry import ClusterEntry
from cluster.ray_jobs import make_portable_config, runtime_env
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config


def config(photos: Path, *overrides: str) -> Config:
    return load_config("toy-robot", [f"subject.photos={photos}", *overrides])


def test_a_run_is_named_by_its_content(photos: Path, tmp_path: Path) -> None:
    storage = f"storage.uri={tmp_path}"
    one, repeated = (
        make_portable_config(config(photos, storage)),
        make_portable_config(config(photos, storage)),
    )
    elsewhere = make_portable_config(config(photos, storage, "cluster.max_failures=9"))
    other = make_portable_config(config(photos, storage, "train.steps=3"))
    assert one.run_id == repeated.run_id == elsewhere.run_id
    assert other.run_id != one.run_id
    assert str(one.run_id).startswith("robot-")
    assert make_portable_config(config(photos, storage, "run_id=mine")).run_id == "mine"


def test_photographs_go_to_remote_storage_by_hash(photos: Path) -> None:
    portable = make_portable_config(config(photos, "storage.uri=memory://bucket/x"))
    repeated = make_portable_config(config(photos, "storage.uri=memory://bucket/x"))
    assert portable.subject.photos == repeated.subject.photos
    assert "://" in portable.subject.photos
    assert "/photographs/" in portable.subject.photos


def test_no_address_travels_with_a_run(photos: Path, tmp_path: Path) -> None:
    with_address = config(photos, f"storage.uri={tmp_path}", "cluster.address=here:6379")
    assert make_portable_config(with_address).cluster.address is None


@pytest.mark.parametrize("code", ["tree", "installed", "image"])
def test_runtime_environments_are_rays(code: str) -> None:
    environment = runtime_env(
        ClusterEntry.model_validate(
            {"address": "http://x:8265", "code": code, "image": "r.example/d:1", "env": {"A": "b"}}
        )
    )
    RuntimeEnv(**environment)
    assert environment["env_vars"]["A"] == "b"
    assert ("py_modules" in environment) == (code == "tree")
    assert ("image_uri" in environment) == (code == "image")
