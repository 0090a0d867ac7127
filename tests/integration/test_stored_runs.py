"""What earlier versions have stored: every later one resumes, loads and serves it.

tests/stored/runs.tar.xz was made by the first version, on a tiny random model, below
/tmp/dreambooth-stored: runs of each strategy and method half way, a finished LoRA, a fleet of which
one subject is done and one half way, and what came of them when nothing stopped.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.runs import is_finished
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import SubjectVersionCatalog
from dreambooth_ray.storage.version_catalog_rebuild import rebuild_catalog
from serve.deployment import build_app_state
from serve.gateway import create_app
from serve.replica import Replica
from tests.integration.conftest import Run, dreambooth
from tests.unit.serve.conftest import Handle

ARCHIVE = Path(__file__).parents[1] / "stored" / "runs.tar.xz"
MADE_IN = "/tmp/dreambooth-stored"
TEXT_SUFFIXES = {".yaml", ".json"}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Unpacked, with the paths it was made with led here."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in (
        p for p in tmp_path.rglob("*") if p.suffix in TEXT_SUFFIXES and p.name != "card.md"
    ):
        text = path.read_text()
        if MADE_IN in text:
            path.write_text(text.replace(MADE_IN, str(tmp_path)))
    return tmp_path


def check_curve(run: Run, stored: Path, name: str, rel: float) -> None:
    """As the commit that made it had them. rel: what its processor may have rounded otherwise"""
    lines = (stored / "expected" / f"{name}.jsonl").read_text().splitlines()
    for record, line in zip(run.curve, lines, strict=True):
        assert record == pytest.approx(json.loads(line), rel=rel, abs=0.0)


@pytest.mark.parametrize(
    ("name", "rel"),
    [
        ("ddp", 0.0),
        *(pytest.param(name, 1e-6, marks=pytest.mark.fault) for name in ("fsdp2", "zero2", "kv")),
    ],
)
def test_a_run_half_way_is_resumed_to_the_same_numbers(stored: Path, name: str, rel: float) -> None:
    run = Run(stored / "storage" / "runs" / name)
    assert not is_finished(Store(str(run.folder)))
    process = dreambooth("resume", str(run.folder), cwd=stored)
    assert process.returncode == 0, process.stderr
    check_curve(run, stored, name, rel)
    assert is_finished(Store(str(run.folder)))


@pytest.mark.fault
def test_a_fleet_on_its_way_is_finished(stored: Path) -> None:
    process = dreambooth("fleet", str(stored / "fleet.yaml"), cwd=stored)
    assert process.returncode == 0, process.stderr
    for name in ("first", "second"):
        run = Run(stored / "storage" / "runs" / name)
        check_curve(run, stored, name, 1e-6)
        assert is_finished(Store(str(run.folder)))


def test_an_adapter_samples_what_it_did(stored: Path) -> None:
    engine = Engine(stored / "storage" / "runs" / "lora" / "bundle")
    requests = [Request("a sks robot", seed=seed, num_inference_steps=2) for seed in (0, 1)]
    for index, output in enumerate(engine.sample(requests)):
        image = Image.open(stored / "expected" / f"{index:06d}.png")
        assert np.abs(np.asarray(image).astype(int) - np.asarray(output.image)).max() <= 1


@pytest.mark.parametrize("is_rebuilt", [False, True])
def test_a_subject_is_served(stored: Path, is_rebuilt: bool) -> None:
    """Without a step of its own where runs are few; else after `dreambooth catalog rebuild`."""
    if is_rebuilt:
        report = rebuild_catalog(SubjectVersionCatalog(Store(str(stored / "storage"))))
        assert report.num_subjects == 2
    config = ServeConfig.model_validate(
        {
            "storage": {"uri": str(stored / "storage")},
            "models": {"base": str(stored / "model")},
            "safety": {"prompts": False},
        }
    )
    replica = Replica(config)
    body = {"model": "lora", "prompt": "a sks robot", "seed": 0, "num_inference_steps": 2}
    with TestClient(create_app(build_app_state(config, {"Replica": Handle(replica)}))) as client:
        answer = client.post("/v1/images/generations", json=body)
        models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    replica.__del__()
    assert answer.status_code == 200, answer.text
    assert models == ["base", "first", "lora"]


def test_class_images_are_read(stored: Path) -> None:
    folder = next((stored / "storage" / "priors").iterdir())
    assert PriorSet(Store(str(folder)), 2).load_posterior(1).shape[-1] == 16
