import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus
from ray.runtime_env import RuntimeEnv

from cluster.cluster_jobs import runtime_env
from cluster.cluster_registry import ClusterEntry
from cluster.ray_jobs import RayJobs, make_portable_config
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CapacityError, ConfigError
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import (
    adapted_base,
    model_directory,
    model_hash,
    model_outline,
)
from dreambooth_ray.storage.manifest import write_local_manifest


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


STORAGE_URI = "memory:///bucket/x"
REMOTE = f"storage.uri={STORAGE_URI}"


def test_a_model_of_this_machine_goes_to_remote_storage_by_hash(
    photos: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a model at a URL there, for hosts that have no such folder."""
    portable, repeated = (
        make_portable_config(config(photos, REMOTE, f"model.uri={tiny_model}")) for _ in range(2)
    )
    assert portable.model.uri == f"{STORAGE_URI}/models/{model_hash(tiny_model)}"
    assert portable == repeated
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "another-host"))
    assert find_family(model_outline(portable.model.uri)).name == "stable-diffusion"
    fetched = model_directory(portable.model.uri)
    assert fetched != tiny_model
    assert model_hash(fetched) == model_hash(tiny_model)


def test_parts_of_this_machine_go_with_their_model(
    photos: Path, toy_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_model / "vae", tmp_path / "vae")
    settings = REMOTE, "model.uri=toyworld", f"model.vae={tmp_path / 'vae'}"
    portable = make_portable_config(config(photos, *settings))
    assert portable.model.uri.startswith(f"{STORAGE_URI}/models/")
    assert portable.model.vae is None
    assert model_hash(model_directory(portable.model.uri)) == model_hash(toy_model)


@pytest.mark.parametrize("uri", ["toyworld", "s3://bucket/model"])
def test_a_model_that_hosts_find_themselves_is_named_as_it_was(photos: Path, uri: str) -> None:
    assert make_portable_config(config(photos, REMOTE, f"model.uri={uri}")).model.uri == uri


def test_adapters_go_with_what_they_say_of_their_base(
    photos: Path, adapters: dict[str, Path], toy_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(adapters["one"], folder / "adapter")
    about = {"kind": "adapter", "base_model": "toyworld", "base_hash": model_hash(toy_model)}
    write_local_manifest(folder, about)
    portable = make_portable_config(config(photos, REMOTE, f"model.uri={folder}"))
    fetched = model_directory(portable.model.uri)
    assert fetched != folder
    assert adapted_base(fetched) == ("toyworld", about["base_hash"])
    write_local_manifest(
        folder, about | {"base_model": str(tiny_model), "base_hash": model_hash(tiny_model)}
    )
    with pytest.raises(ConfigError, match=r"model\.uri=.*bundle' adapts .*lies on this machine"):
        make_portable_config(config(photos, REMOTE, f"model.uri={folder}"))


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


class JobServer:
    """Refuses every job; `jobs` are those it has, the last one submitted by somebody else."""

    jobs: tuple[Any, ...] = ()
    seen_by_client = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        """As Ray's client."""

    def list_jobs(self) -> tuple[Any, ...]:
        # The first listing is from before the other one's submission.
        type(self).seen_by_client += 1
        return self.jobs if self.seen_by_client > 1 else ()

    def submit_job(self, **settings: Any) -> None:
        raise RuntimeError("Request failed with status code 500: anything at all")


@pytest.mark.parametrize("has_job", [True, False])
def test_a_refused_job_is_somebody_elses_or_an_error(
    monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path, has_job: bool
) -> None:
    settings = config(photos, f"storage.uri={tmp_path}", "run_id=mine")
    metadata = {"run_id": "mine", "run_uri": f"{tmp_path}/runs/mine", "attempt": "1"}
    job = SimpleNamespace(
        metadata=metadata, submission_id="mine.1", status=JobStatus.PENDING, start_time=1
    )
    monkeypatch.setattr(JobServer, "jobs", (job,) if has_job else ())
    monkeypatch.setattr(JobServer, "seen_by_client", 0)
    monkeypatch.setattr("cluster.cluster_jobs.JobSubmissionClient", JobServer)
    monkeypatch.setattr("cluster.cluster_jobs.Dashboard.versions", lambda _: None)
    jobs = RayJobs(ClusterEntry.model_validate({"address": "http://x:8265"}))
    if has_job:
        assert jobs.submit(settings).submission_id == "mine.1"
    else:
        with pytest.raises(CapacityError, match=r"took no job.*anything at all"):
            jobs.submit(settings)
