from pathlib import Path

import pytest

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.priors.generation import open_set
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage.store import Store


@pytest.fixture(scope="session")
def priors(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Store:
    """Five class images."""
    spec = PriorSpec("hash", ("a robot",), SamplingParams(num_inference_steps=2), 64, 0, 5)
    store = open_set(Store(str(tmp_path_factory.mktemp("priors"))), spec)
    PriorWorker(str(tiny_model), store.uri, spec, gpu=False).generate(0)
    return store
