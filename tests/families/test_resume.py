"""A LoRA of each family whose worker is killed ends as if nothing had been."""

import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.restarts import read_restarts
from tests.families.proven_families import TRAINED_MODELS
from tests.families.tiny_models import build_tiny
from tests.integration.conftest import Background, Run, kill_tree, start_dreambooth

pytestmark = pytest.mark.fault
STRATEGIES = ["ddp", "fsdp2"]
# A checkpoint at each step, so that steps take long enough to be met in one.
SETTINGS = [
    "train.method=lora", "train.lora.rank=2", "train.steps=6", "train.resolution=64",
    "train.batch_size=2", "prior.count=4", "prior.num_inference_steps=2", "checkpoint.every=1",
    "checkpoint.keep=2", "sample.every=0", "cluster.workers=2",
]  # fmt: skip


@pytest.fixture(scope="module", params=TRAINED_MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)


@pytest.fixture
def started() -> Iterator[list[Background]]:
    runs: list[Background] = []
    yield runs
    for run in runs:
        kill_tree(run.process)


def start(
    started: list[Background], tiny: Path, photos: Path, folder: Path, strategy: str
) -> Background:
    run_id = uuid.uuid4().hex
    process = start_dreambooth(
        "train", "toy-robot.yaml", f"model.uri={tiny}", f"subject.photos={photos}",
        f"train.strategy={strategy}", f"storage.uri={folder}", f"run_id={run_id}", *SETTINGS,
        cwd=folder,
    )  # fmt: skip
    started.append(Background(process, folder / "runs" / run_id))
    return started[-1]


def finish(run: Background) -> Run:
    _, errors = run.process.communicate(timeout=400)
    assert run.process.returncode == 0, errors
    return Run(run.folder)


def read_weights(run: Run) -> dict[str, torch.Tensor]:
    (path,) = (run.folder / "bundle").glob("adapter/*/adapter_model.safetensors")
    return load_file(path)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_worker_changes_no_number(
    tiny: Path, photos: Path, tmp_path: Path, started: list[Background], strategy: str
) -> None:
    undisturbed = finish(start(started, tiny, photos, tmp_path, strategy))
    run = start(started, tiny, photos, tmp_path, strategy)
    run.wait_for_step(2)
    random.choice(run.train_workers()).kill()
    disturbed = finish(run)
    (restart,) = read_restarts(Store(str(run.folder)))
    assert "worker died" in restart.cause
    assert disturbed.curve == undisturbed.curve
    assert [row["step"] for row in disturbed.curve] == list(range(1, 7))
    weights = read_weights(undisturbed)
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    for name, weight in read_weights(disturbed).items():
        assert torch.equal(weight, weights[name]), name
