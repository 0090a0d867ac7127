"""How the generation of class images ends is told to those that wait for one."""

from pathlib import Path
from typing import cast

import pytest

from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.priors.prior_generation import PriorSetRequest
from dreambooth_ray.priors.prior_stream import PriorStream
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.worker import open_priors
from dreambooth_ray.training.worker_job import WorkerJob


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


@pytest.fixture
def set_store(tmp_path: Path) -> Store:
    set_store = Store(str(tmp_path / "set"))
    set_store.write(paths.PRIOR_SPEC, b'{"prompts": ["a robot"], "chunk_size": 2}')
    return set_store


def stream(run: Store, set_store: Store, error: Exception | None = None) -> PriorStream:
    def generate() -> Store:
        if error is not None:
            raise error
        return set_store

    # It is asked for nothing but to stop.
    return PriorStream(generate, cast("PriorSetRequest", None), set_store, run, lease=3)


def job_of(run: Store, set_store: Store, lease: int) -> WorkerJob:
    return WorkerJob("", run.uri, "", set_store.uri, 2, lease=lease)


def test_a_class_image_that_is_gone_is_not_waited_for(run: Store, set_store: Store) -> None:
    with stream(run, set_store):
        pass
    with pytest.raises(DreamBoothError, match=r"one is gone since.*start the run again"):
        open_priors(job_of(run, set_store, lease=3)).load_posterior(0)
    # Of a fleet's batch, whose class images are made before.
    with pytest.raises(DreamBoothError, match="one is gone since"):
        open_priors(job_of(run, set_store, lease=0)).load_posterior(0)


def test_why_no_more_come_is_told(run: Store, set_store: Store) -> None:
    failing = stream(run, set_store, DreamBoothError("no room"))
    with pytest.raises(DreamBoothError, match="no room"), failing:
        pass
    with pytest.raises(DreamBoothError, match=r"no more class images.*no room"):
        open_priors(job_of(run, set_store, lease=3)).load_posterior(0)


def test_the_next_generation_begins_anew(run: Store, set_store: Store) -> None:
    with stream(run, set_store):
        pass
    with stream(run, set_store) as again:
        again.wait_for_all_chunks()
    assert run.names() == [paths.PRIOR_END.replace(".json", "-000003.json")]
