"""How a run stands, from what its writers left in it."""

import json
from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.evaluation_decision import (
    EvaluationDecision,
    write_early_end_step,
    write_selection,
)
from dreambooth_ray.training.run_state import RunState, read_run_state
from dreambooth_ray.training.stop_request import request_stop


class CountingStore(Store):
    """Counts its requests."""

    num_requests = 0

    def names(self, folder: str = "") -> list[str]:
        self.num_requests += 1
        return super().names(folder)

    def read(self, name: str) -> bytes:
        self.num_requests += 1
        return super().read(name)

    def exists(self, name: str) -> bool:
        self.num_requests += 1
        return super().exists(name)


@pytest.fixture
def run(tmp_path: Path) -> CountingStore:
    return CountingStore(str(tmp_path))


def config_of(*overrides: str) -> Config:
    text = "subject: {photos: none, class_noun: robot}\ntrain: {steps: 40}"
    return parse_config(text, "test", list(overrides))


def commit(run: Store, *steps: int) -> None:
    for step in steps:
        run.write(f"{paths.checkpoint(step)}.json", b"{}")


def write_losses(run: Store, *losses: float) -> None:
    records = [{"step": 10 * (k + 1), "val_loss": loss} for k, loss in enumerate(losses)]
    run.write(paths.METRICS, "".join(json.dumps(r) + "\n" for r in records).encode())


PATIENT = ("validation.every=10", "validation.patience=1", "prior.count=0")
BEST = ("choice.rule=best",)


def test_a_run_that_has_not_begun(run: CountingStore) -> None:
    assert read_run_state(run, config_of()) == RunState(0, 40, "configured")
    assert run.num_requests == 1


def test_half_way_and_stopped(run: CountingStore) -> None:
    commit(run, 10, 20)
    state = read_run_state(run, config_of())
    assert (state.committed_step, state.is_trained, state.reason) == (20, False, "configured")
    request_stop(run)
    assert read_run_state(run, config_of()).reason == "stopped"


def test_its_validation_losses_end_it(run: CountingStore) -> None:
    commit(run, 10, 20)
    write_losses(run, 1.0, 2.0)
    state = read_run_state(run, config_of(*PATIENT))
    assert (state.last_step, state.reason, state.is_trained) == (20, "early", True)
    assert read_run_state(run, config_of()).last_step == 40


def test_its_evaluations_end_it_and_select(run: CountingStore) -> None:
    commit(run, 10, 20, 30)
    write_early_end_step(run, 30)
    write_selection(run, EvaluationDecision(20, (10, 20, 30), True))
    state = read_run_state(run, config_of(*BEST))
    assert (state.last_step, state.reason, state.bundled_checkpoint_step) == (30, "stalled", 20)
    assert read_run_state(run, config_of()).bundled_checkpoint_step == 30


@pytest.mark.parametrize("is_bundled", [False, True])
def test_four_requests_tell_it_all(run: CountingStore, is_bundled: bool) -> None:
    commit(run, 10, 20)
    write_losses(run, 1.0, 2.0)
    write_selection(run, EvaluationDecision(10, (10, 20), False))
    if is_bundled:
        run.write(f"{paths.BUNDLE}/manifest.json", b"{}")
    run.num_requests = 0
    state = read_run_state(run, config_of(*PATIENT, *BEST))
    assert state == RunState(20, 20, "early", 10, is_bundled)
    assert run.num_requests == 4
