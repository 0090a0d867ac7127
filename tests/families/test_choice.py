"""Weights of every family are evaluated between two steps, by the protocol for all of them."""

from pathlib import Path

import pytest
import yaml

from dreambooth_ray.evaluation.checkpoint_follower import read_scored_checkpoints
from dreambooth_ray.evaluation.protocol import load_protocol
from dreambooth_ray.evaluation.training_evaluator import TrainingEvaluator
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.worker_job import WorkerJob
from dreambooth_ray.training.worker_messages import read_new_messages
from tests.unit.training.fitted import Fitted

pytestmark = pytest.mark.fault


def test_weights_are_evaluated_by_the_familys_own_solver_and_guidance(
    tiny_directory: Path, photos: Path, tmp_path: Path
) -> None:
    """As `brief` does, but its encoders, which are published, and in two steps of 64 pixels."""
    protocol = load_protocol("brief").model_dump(mode="json", exclude_unset=True)
    protocol["encoders"] = {
        "dino": "toyworld:identity", "clip_i": "toyworld:identity", "clip_t": "toyworld:attributes",
    }  # fmt: skip
    protocol |= {"max_inference_steps": 2, "class_images": 2}
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(protocol))
    settings = [
        "choice.rule=best", f"choice.protocol={file}", "choice.max_evaluations=0",
        "checkpoint.every=1", "checkpoint.keep=9", "train.method=lora", "train.steps=2",
        "prior.count=0", "sample.every=0",
    ]  # fmt: skip
    run = Store(str(tmp_path / "run"))
    job = WorkerJob("", run.uri, str(tiny_directory), lease=0)
    fitted = Fitted(
        tiny_directory, photos, None, *settings, track=run, keep=True,
        make_evaluator=lambda config: TrainingEvaluator(job, config, 0),
    )  # fmt: skip
    assert read_new_messages(run, set()) == []
    assert committed_steps(run) == [1, 2]
    points = read_scored_checkpoints(run, fitted.module.config.choice)
    assert [point.step for point in points] == [1, 2]
    alone = Fitted(tiny_directory, photos, None, *settings)
    assert fitted.losses() == alone.losses()
