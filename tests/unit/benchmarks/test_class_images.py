from pathlib import Path

import pytest

from benchmarks.class_images import draw_class_images
from benchmarks.gated_runs import Silent, make_config
from benchmarks.theme import Setting
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.preparation import prepare
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage import paths


def test_class_images_of_a_run_are_all_there_and_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(make_config(tmp_path, Setting(), "full", 1), Silent())
    order, store = draw_class_images(prepared)
    assert order.count == 8
    last = PriorSet(store, order.count, lambda: "one is missing").posterior(7)
    assert last.shape[:2] == (2, 2)
    kept = store.read(f"{paths.prior_chunk(0)}.json")

    def unwanted(*_: object) -> None:
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(PriorWorker, "paint", unwanted)
    again, same = draw_class_images(prepared)
    assert (again.count, same.uri) == (8, store.uri)
    assert same.read(f"{paths.prior_chunk(0)}.json") == kept
