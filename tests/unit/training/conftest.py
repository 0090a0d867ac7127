from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.priors.prior_generation import open_prior_set
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.module import DreamBoothModule


@pytest.fixture(scope="session")
def priors(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Store:
    """Five class images."""
    return make_priors(tmp_path_factory.mktemp("priors"), tiny_model, 2)


@pytest.fixture(scope="session")
def sd21_priors(tmp_path_factory: pytest.TempPathFactory, sd21: Path) -> Store:
    """Five class images of a model as published."""
    return make_priors(tmp_path_factory.mktemp("priors"), sd21, 1)


@pytest.fixture(scope="session")
def sd15_priors(tmp_path_factory: pytest.TempPathFactory, sd15: Path) -> Store:
    """Five class images of a model as published."""
    return make_priors(tmp_path_factory.mktemp("priors"), sd15, 1)


def make_priors(folder: Path, model: Path, num_steps: int) -> Store:
    params = SamplingParams(num_inference_steps=num_steps)
    spec = PriorSpec("hash", ("a robot",), params, 64, 0, 5)
    store = open_prior_set(Store(str(folder)), spec)
    PriorWorker(str(model), store.uri, spec, gpu=False).generate(0)
    return store


@pytest.fixture
def broken_steps(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps, counted from 1, whose gradients are no numbers, though their loss is one."""
    steps = set[int]()
    compute_loss = DreamBoothModule.compute_loss

    def compute_broken_loss(self: DreamBoothModule, batch: Batch) -> Any:
        loss, halves = compute_loss(self, batch)
        if batch.step + 1 in steps:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss, halves

    monkeypatch.setattr(DreamBoothModule, "compute_loss", compute_broken_loss)
    return steps
