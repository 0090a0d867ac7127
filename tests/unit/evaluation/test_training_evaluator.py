"""Evaluations between the steps of a training, without Ray."""

import json
from functools import partial
from pathlib import Path

import pytest
import yaml

from dreambooth_ray.config.load import dump_config
from dreambooth_ray.evaluation.checkpoint_evaluator import CheckpointEvaluator
from dreambooth_ray.evaluation.checkpoint_follower import read_scored_checkpoints
from dreambooth_ray.evaluation.protocol_scorer import load_choice_protocol
from dreambooth_ray.evaluation.training_evaluator import TrainingEvaluator, make_training_evaluator
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.fence import RunHistory
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.checkpoint_selection import read_end, read_selection
from dreambooth_ray.training.worker_job import WorkerJob
from dreambooth_ray.training.worker_messages import read_new_messages
from tests.unit.evaluation.test_checkpoint_evaluator import PROTOCOL
from tests.unit.training.fitted import Fitted


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Of a run that ends as soon as its evaluations allow."""
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(PROTOCOL))
    return [
        "choice.rule=best", f"choice.protocol={tmp_path / 'protocol.yaml'}", "choice.patience=1",
        "choice.min_gain=5", "checkpoint.every=1", "checkpoint.keep=9", "train.method=lora",
        "sample.every=0", "train.text_encoder=true", "prior.count=0",
    ]  # fmt: skip


def test_a_training_evaluates_itself_ends_early_and_learns_as_without(
    tmp_path: Path, tiny_model: Path, photos: Path, settings: list[str]
) -> None:
    run = Store(str(tmp_path / "run"))
    job = WorkerJob("", run.uri, str(tiny_model), lease=0)
    fitted = Fitted(
        tiny_model, photos, None, *settings, "train.steps=6", track=run, keep=True,
        make_evaluator=lambda config: make_training_evaluator(job, config, 0),
    )  # fmt: skip
    alone = Fitted(tiny_model, photos, None, *settings, "train.steps=2")
    assert fitted.losses() == alone.losses()
    assert committed_steps(run) == [1, 2]
    assert read_end(run, run.names(), RunHistory()) == 2
    config = fitted.module.config
    points = read_scored_checkpoints(run, config.choice)
    assert [point.step for point in points] == [1, 2]
    assert read_selection(run).stop
    # The numbers are those that another process gives the checkpoint.
    inside = json.loads(run.read(paths.evaluation(2)))["totals"]
    evaluator = CheckpointEvaluator(
        dump_config(config), run.uri, (str(tiny_model), ""), load_choice_protocol(config), {}
    )
    evaluator.evaluate(2)
    assert json.loads(run.read(paths.evaluation(2)))["totals"] == pytest.approx(inside, abs=0.01)


def test_what_was_scored_and_not_committed_is_scored_again(
    tmp_path: Path, tiny_model: Path, photos: Path, settings: list[str]
) -> None:
    run = Store(str(tmp_path / "run"))
    job = WorkerJob("", run.uri, str(tiny_model), lease=0)
    make = partial(make_training_evaluator, job)
    fitted = Fitted(
        tiny_model, photos, None, *settings, "train.steps=1", track=run, keep=True,
        make_evaluator=lambda config: make(config, 0),
    )  # fmt: skip
    config = fitted.module.config
    assert not make(config, 1).is_due(1)
    assert make(config, 0).is_due(1)
    assert read_selection(run).judged == ()


def test_an_evaluation_that_fails_ends_no_training(
    tmp_path: Path, tiny_model: Path, photos: Path, settings: list[str]
) -> None:
    class Failing(TrainingEvaluator):
        def evaluate(self, step: int, sample_images: object) -> None:
            raise MemoryError("no room for the images")

    run = Store(str(tmp_path / "run"))
    job = WorkerJob("", run.uri, str(tiny_model), lease=0)
    fitted = Fitted(
        tiny_model, photos, None, *settings, "train.steps=2", track=run, keep=True,
        make_evaluator=lambda config: Failing(job, config, 0),
    )  # fmt: skip
    assert committed_steps(run) == [1, 2]
    assert fitted.watch.records[-1]["step"] == 2
    assert any("no room for the images" in text for text in read_new_messages(run, set()))
