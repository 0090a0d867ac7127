from pathlib import Path

import pytest

from benchmarks.gated_runs import make_config
from benchmarks.theme import BenchmarkSettings
from benchmarks.timed_run_setup import generate_class_images
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.preparation import prepare_run
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage import paths


def test_class_images_of_a_run_are_all_there_and_generated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_run(make_config(tmp_path, BenchmarkSettings(), "full", 1), QuietDisplay())
    request, store = generate_class_images(prepared)
    assert request.count == 8
    last = PriorSet(store, request.count, lambda: "one is missing").load_posterior(7)
    assert last.shape[:2] == (2, 2)
    record = store.read(f"{paths.prior_chunk_artifact(0)}.json")

    def fail(*_: object) -> None:
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(PriorWorker, "generate", fail)
    later_request, later_store = generate_class_images(prepared)
    assert (later_request.count, later_store.uri) == (8, store.uri)
    assert later_store.read(f"{paths.prior_chunk_artifact(0)}.json") == record
