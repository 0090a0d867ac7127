"""Evaluations between the steps of a training, without Ray."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from dreambooth_ray.config.load import dump_config
from dreambooth_ray.evaluation.checkpoint_evaluator import CheckpointEvaluator
from dreambooth_ray.evaluation.checkpoint_follower import read_scored_checkpoints
from dreambooth_ray.evaluation.protocol_scorer import load_checkpoint_protocol
from dreambooth_ray.evaluation.training_evaluator import TrainingEvaluator
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.fence import RunHistory
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.evaluation_decision import read_early_end_step, read_selection
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


def fit(
    model: Path,
    photos: Path,
    run: Store,
    *settings: str,
    kind: type[TrainingEvaluator] = TrainingEvaluator,
) -> Fitted:
    """A training that evaluates itself, its checkpoints in `run`."""
    job = WorkerJob("", run.uri, str(model), lease=0)
    return Fitted(
        model,
        photos,
        None,
        *settings,
        track=run,
        keep=True,
        make_evaluator=lambda config: kind(job, config, 0),
    )


def test_a_training_evaluates_itself_ends_early_and_learns_as_without(
    tmp_path: Path, tiny_model: Path, photos: Path, settings: list[str]
) -> None:
    run = Store(str(tmp_path / "run"))
    fitted = fit(tiny_model, photos, run, *settings, "train.steps=6")
    alone = Fitted(tiny_model, photos, None, *settings, "train.steps=2")
    assert fitted.losses() == alone.losses()
    assert committed_steps(run) == [1, 2]
    assert read_early_end_step(run, run.names(), RunHistory()) == 2
    config = fitted.module.config
    points = read_scored_checkpoints(run, config.choice)
    assert [point.step for point in points] == [1, 2]
    assert read_selection(run).stop
    # The numbers are those that another process gives the checkpoint.
    inside = json.loads(run.read(paths.evaluation(2)))["totals"]
    evaluator = CheckpointEvaluator(
        dump_config(config), run.uri, (str(tiny_model), ""), load_checkpoint_protocol(config), {}
    )
    evaluator.evaluate(2)
    assert json.loads(run.read(paths.evaluation(2)))["totals"] == pytest.approx(inside, abs=0.01)


@pytest.mark.fault
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.ema_decay=0.9", "prior.kind=output"),
        ("identifier.kind=learned", "train.precision=bf16-mixed"),
        ("train.method=full", "train.accumulate=2", "prior.kind=output"),
        ("train.method=kv", "train.text_encoder=false", "train.ema_decay=0.9"),
        ("train.lora.dora=true", "train.precision=bf16-mixed", "train.weight_dtype=bfloat16"),
        ("train.gradient_checkpointing=true", "sample.every=1", "sample.num_inference_steps=2"),
    ],
    ids=" ".join,
)
def test_an_evaluation_changes_no_step_of_any_setting(
    tmp_path: Path, tiny_model: Path, photos: Path, settings: list[str], overrides: tuple[str, ...]
) -> None:
    run, chosen = Store(str(tmp_path / "run")), [*settings, "choice.patience=0", "train.steps=3"]
    fitted = fit(tiny_model, photos, run, *chosen, *overrides)
    alone = Fitted(tiny_model, photos, None, *chosen, *overrides)
    assert fitted.losses() == alone.losses()
    assert all(torch.equal(w, alone.weights[name]) for name, w in fitted.weights.items())
    points = read_scored_checkpoints(run, fitted.module.config.choice)
    assert [point.step for point in points] == [1, 2, 3]
    assert read_new_messages(run, set()) == []


def test_what_was_scored_and_not_committed_is_scored_again(
    tmp_path: Path, tiny_model: Path, photos: Path, settings: list[str]
) -> None:
    run = Store(str(tmp_path / "run"))
    config = fit(tiny_model, photos, run, *settings, "train.steps=1").module.config
    job = WorkerJob("", run.uri, str(tiny_model), lease=0)
    assert not TrainingEvaluator(job, config, 1).is_due(1)
    assert TrainingEvaluator(job, config, 0).is_due(1)
    assert read_selection(run).judged == ()


def test_an_evaluation_that_fails_ends_no_training(
    tmp_path: Path, tiny_model: Path, photos: Path, settings: list[str]
) -> None:
    class Failing(TrainingEvaluator):
        def evaluate(self, step: int, sample_images: object) -> None:
            raise MemoryError("no room for the images")

    run = Store(str(tmp_path / "run"))
    fitted = fit(tiny_model, photos, run, *settings, "train.steps=2", kind=Failing)
    assert committed_steps(run) == [1, 2]
    assert fitted.watch.records[-1]["step"] == 2
    messages = read_new_messages(run, set())
    assert len([text for text in messages if "no room for the images" in text]) == 1
