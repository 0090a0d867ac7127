"""Every logger by its name, read back from what it left."""

import csv
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.loggers import Loggers, make_logger
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.metrics_log import read_metrics
from tests.unit.training.fitted import Fitted

OVERRIDES = ("train.steps=3", "validation.every=3", "validation.class_images=2", "prior.count=5")


def test_a_resumed_run_stands_in_each_logger_once(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    run, state = Store(str(tmp_path / "run")), tmp_path / "state.ckpt"
    overrides = (*OVERRIDES, "tracking.loggers=[tensorboard,csv]")
    Fitted(tiny_model, photos, priors, *overrides, track=run, save=state)
    first = read_metrics(run)
    Fitted(tiny_model, photos, priors, *overrides, track=run, resume=state)
    assert read_metrics(run) == first
    assert [("val_loss" in r) for r in first] == [False, False, True]
    with (tmp_path / "run" / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert [float(row["train/loss"]) for row in rows] == [r["loss"] for r in first]
    assert float(rows[-1]["val/loss"]) == first[-1]["val_loss"]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [e.value for e in events.Scalars("train/instance_loss")]
    assert losses == pytest.approx([r["instance_loss"] for r in first])
    assert {"val/loss", "val/prior_loss_bin0", "throughput/images_per_s"} <= set(
        events.Tags()["scalars"]
    )


@pytest.mark.parametrize("name", ["tensorboard", "csv", "wandb", "mlflow"])
def test_images_go_wherever_images_can_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name in ("wandb", "mlflow"):
        pytest.importorskip(name, reason=f"the extra [{name}] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    text = (
        f"run_id: one\nsubject: {{photos: p, class_noun: robot}}\ntracking: {{loggers: [{name}]}}"
    )
    run = Store(str(tmp_path))
    loggers = Loggers(run, parse_config(text, "x", []), 0, SideWork(run))
    loggers.open([])
    loggers.add_image("samples/a sks robot", np.zeros((8, 8, 3), np.uint8), 6)
    loggers.close()
    if name == "tensorboard":
        images = EventAccumulator(str(tmp_path / name)).Reload().Images("samples/a sks robot")
        assert [image.step for image in images] == [6]
    assert bool(list(tmp_path.rglob("*.png"))) == (name in ("wandb", "mlflow"))


def test_wandb_offline_keeps_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = parse_config("run_id: one\nsubject: {photos: p, class_noun: robot}", "x", [])
    logger = make_logger("wandb", tmp_path / "wandb", config, 0)
    logger.log_metrics({"train/loss": 0.5}, 1)
    assert wandb.run.summary["train/loss"] == 0.5
    logger.experiment.finish()
    assert list((tmp_path / "wandb").rglob("*.wandb"))


def test_mlflow_keeps_one_run_over_a_resume(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")
    config = parse_config("run_id: one\nsubject: {photos: p, class_noun: robot}", "x", [])
    for step in (1, 2):
        logger = make_logger("mlflow", tmp_path / "mlflow", config, step - 1)
        logger.log_metrics({"train/loss": 0.5 * step}, step)
        logger.finalize("success")
    client = mlflow.MlflowClient((tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("dreambooth")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 1.0)]
