"""Faults planted one by one, each found by its key, against a dashboard that really speaks HTTP."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.cluster_registry import ClusterEntry
from cluster.preflight import Finding, preflight
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory.training_memory import TrainingFootprint, footprint
from dreambooth_ray.storage.store import Store
from tests.ray_head import TOKEN, Server, ray_head


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    """Counting a model takes half a second: once for each that the tests differ in."""
    known: dict[str, TrainingFootprint] = {}

    def remembered(config: Config, directory: Path) -> TrainingFootprint:
        key = f"{config.train!r}{config.cluster.workers}"
        if key not in known:
            known[key] = footprint(config, directory)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.preflight.footprint", remembered)
        yield


@pytest.fixture
def head() -> Iterator[Server]:
    with ray_head() as server:
        yield server


def entry(head: Server, **changes: Any) -> ClusterEntry:
    given = {"address": f"http://127.0.0.1:{head.server_port}", "token": TOKEN}
    return ClusterEntry.model_validate({**given, **changes})


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> Config:
    return make(photos, tmp_path)


def make(photos: Path, tmp_path: Path, *overrides: str) -> Config:
    given = [f"subject.photos={photos}", f"storage.uri={tmp_path}", *overrides]
    return load_config("toy-robot", given)


def keys(findings: list[Finding]) -> list[str]:
    return [f.key for f in findings if f.fatal]


def test_nothing_wrong_is_nothing_found(config: Config, head: Server) -> None:
    assert keys(preflight(config)) == []
    assert keys(preflight(config, entry(head))) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("subject.photos=/nowhere", "subject.photos"),
        ("model.uri=/nowhere", "model.uri"),
        ("train.resolution=60", "train.resolution"),
        ("storage.uri=/proc/nowhere", "storage.uri"),
        ("storage.uri=nosuch://bucket", "storage.uri"),
        ("cluster.gpus=true", "cluster.workers"),
    ],
)
def test_a_wrong_setting_is_found_by_its_key(
    photos: Path, tmp_path: Path, head: Server, override: str, key: str
) -> None:
    assert keys(preflight(make(photos, tmp_path, override), entry(head))) == [key]


def test_an_adapter_without_layers_is_found(photos: Path, tmp_path: Path) -> None:
    bad = make(photos, tmp_path, "train.method=lora", "train.lora.target_modules=[nothing]")
    assert keys(preflight(bad)) == ["train.lora.target_modules"]


def test_a_damaged_photograph_is_found(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    first = sorted(photos.glob("*.png"))[0]
    (folder / "whole.png").write_bytes(first.read_bytes())
    (folder / "half.png").write_bytes(first.read_bytes()[:300])
    found = preflight(make(folder, tmp_path))
    assert keys(found) == ["subject.photos"]
    assert "half.png" in found[0].text


def test_what_the_doctor_says_is_a_warning(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("one.png", "two.png"):
        shutil.copy(sorted(photos.glob("*.png"))[0], folder / name)
    said = [f for f in preflight(make(folder, tmp_path)) if "one.png and two.png" in f.text]
    assert [(f.key, f.fatal) for f in said] == [("subject.photos", False)]


def test_an_ordinary_word_and_a_small_image_are_doubted(photos: Path, tmp_path: Path) -> None:
    found = preflight(make(photos, tmp_path, "subject.identifier=dog", "train.resolution=256"))
    assert keys(found) == []
    assert {f.key for f in found} == {"subject.identifier", "subject.photos"}


def test_a_store_without_conditional_writes_is_found(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "create", lambda self, name, data: self.write(name, data) or True)
    assert keys(preflight(config)) == ["storage.uri"]


def test_a_folder_of_this_machine_is_no_storage_for_another(config: Config) -> None:
    elsewhere = ClusterEntry(address="http://192.0.2.1:8265")
    found = [f for f in preflight(config, elsewhere) if f.key == "storage.uri"]
    assert "object store" in found[0].text


@pytest.mark.parametrize(
    ("attribute", "value"), [("ray", "2.9.0"), ("python", "3.9.1"), ("memory", 64 * 2**20)]
)
def test_a_cluster_that_does_not_fit_is_found(
    config: Config, head: Server, attribute: str, value: Any
) -> None:
    setattr(head, attribute, value)
    expected = {"memory": ["train.method"]}.get(attribute, ["image"])
    assert keys(preflight(config, entry(head))) == expected


def test_too_few_gpus_are_found(photos: Path, tmp_path: Path, head: Server) -> None:
    head.gpus = {"GPU": 1.0}
    assert keys(preflight(make(photos, tmp_path, "cluster.gpus=true"), entry(head))) == [
        "cluster.workers"
    ]


def test_hosts_of_a_cluster_that_adds_them_by_itself_are_not_counted(
    photos: Path, tmp_path: Path, head: Server
) -> None:
    head.cpus, head.memory = 0.0, 64 * 2**20
    given = make(photos, tmp_path)
    fatal = [f for f in preflight(given, entry(head)) if f.fatal]
    assert "autoscaled: true" in next(f.text for f in fatal if f.key == "cluster.workers")
    assert keys(preflight(given, entry(head, autoscaled=True))) == []
    with_gpus = make(photos, tmp_path, "cluster.gpus=true")
    assert keys(preflight(with_gpus, entry(head, autoscaled=True))) == []


def test_a_refused_token_is_found(config: Config, head: Server) -> None:
    assert keys(preflight(config, entry(head, token="wrong"))) == ["token"]


def test_a_silent_cluster_is_found(config: Config) -> None:
    nobody = ClusterEntry(address="http://127.0.0.1:9", token=TOKEN)
    assert keys(preflight(config, nobody)) == ["address"]


def test_a_missing_image_is_found(config: Config, head: Server) -> None:
    registry = f"127.0.0.1:{head.server_port}"
    there = entry(head, code="image", image=f"{registry}/dreambooth:1")
    missing = entry(head, code="image", image=f"{registry}/dreambooth:2")
    assert keys(preflight(config, there)) == []
    assert keys(preflight(config, missing)) == ["image"]
    assert keys(preflight(config, entry(head, code="image"))) == ["image"]
