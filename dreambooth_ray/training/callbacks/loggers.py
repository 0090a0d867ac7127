"""Lightning's loggers by name, fed in a thread of their own: none of them can hold up a run."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.side_work import SideWork

RUN_TAG = "dreambooth.run"
# How long loggers may take to close, before the run ends without them.
_CLOSE_TIMEOUT_S = 60.0


def make_logger(name: str, folder: Path, config: Config, start: int) -> Logger:
    """A logger that keeps its files in a folder of its own, going on after step `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    run_id, tracking_config = config.run_id or "run", config.tracking
    if name == "tensorboard":
        return TensorBoardLogger(
            folder, name="", version="", default_hp_metric=False, purge_step=start + 1
        )
    if name == "csv":
        return CSVLogger(folder, name="", version="", flush_logs_every_n_steps=10)
    if name == "wandb":
        # Offline or not, its address and its key: by WANDB_MODE and its like, as wandb reads them.
        return WandbLogger(
            name=run_id, id=run_id, project=tracking_config.project, save_dir=folder, resume="allow"
        )
    mlflow_uri = tracking_config.mlflow_uri or folder.resolve().as_uri()
    if mlflow_uri.startswith("file:"):
        # mlflow asks for this word since it counsels databases; a run's own folder is small.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return MLFlowLogger(
        tracking_config.project,
        run_name=run_id,
        run_id=_find_mlflow_run(mlflow_uri, tracking_config.project, run_id),
        tracking_uri=mlflow_uri,
        tags={RUN_TAG: run_id},
    )


def _find_mlflow_run(uri: str, project: str, run_id: str) -> str | None:
    """mlflow's own id of a run that was begun before."""
    from mlflow import MlflowClient  # noqa: PLC0415

    mlflow_client = MlflowClient(uri)
    experiment = mlflow_client.get_experiment_by_name(project)
    if experiment is None:
        return None
    filter_string = f"tags.`{RUN_TAG}` = '{run_id}'"
    mlflow_runs = mlflow_client.search_runs(
        [experiment.experiment_id], filter_string, max_results=1
    )
    return str(mlflow_runs[0].info.run_id) if mlflow_runs else None


class Loggers:
    """The configured loggers. Every call returns at once; what fails is noted as side work."""

    def __init__(self, run: Store, config: Config, start: int, side_work: SideWork) -> None:
        """start: the step that training goes on from"""
        self._run, self._config, self._start, self._side_work = run, config, start, side_work
        self._loggers: dict[str, Logger] = {}
        self._temporary_folder = tempfile.TemporaryDirectory(prefix="dreambooth-tracking-")

    def open(self, history: list[dict[str, Any]]) -> None:
        """Construct all. history: the metrics up to `start`"""
        for name in self._config.tracking.loggers:
            self._submit(name, partial(self._open_logger, name, history))

    def log(self, record: dict[str, float], images_per_s: float) -> None:
        """Show a step's metrics."""
        tagged_metrics = {**_tag_metrics(record), "throughput/images_per_s": images_per_s}
        for name in self._config.tracking.loggers:
            self._submit(name, partial(self._log_values, name, tagged_metrics, int(record["step"])))

    def add_image(self, title: str, pixels: np.ndarray, step: int) -> None:
        """Show an (H, W, 3) uint8 image wherever images can be shown."""
        for name in self._config.tracking.loggers:
            self._submit(name, partial(self._add_image, name, title, pixels, step))

    def upload_logs(self) -> None:
        """Bring what loggers keep in files to storage, where that is not on this machine."""
        for name in self._config.tracking.loggers:
            self._submit(name, partial(self._upload_logs, name))

    def close(self) -> None:
        """End all; returns when they have, or when they take too long."""
        for name in self._config.tracking.loggers:
            self._submit(name, partial(self._close_logger, name))
        self.upload_logs()
        self._side_work.close(_CLOSE_TIMEOUT_S)
        self._temporary_folder.cleanup()

    def _submit(self, name: str, task: Callable[[], None]) -> None:
        self._side_work.submit(f"logger {name}", task)

    @property
    def _log_folder(self) -> Path:
        return self._run.local_path() if self._run.is_local else Path(self._temporary_folder.name)

    def _open_logger(self, name: str, history: list[dict[str, Any]]) -> None:
        self._loggers[name] = make_logger(name, self._log_folder / name, self._config, self._start)
        if name == "csv":
            # It begins its file anew.
            for record in history:
                self._log_values(name, _tag_metrics(record), int(record["step"]))

    def _log_values(self, name: str, values: dict[str, float], step: int) -> None:
        if logger := self._loggers.get(name):
            logger.log_metrics(values, step)

    def _add_image(self, name: str, title: str, pixels: np.ndarray, step: int) -> None:
        logger = self._loggers.get(name)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(title, pixels, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(title, [Image.fromarray(pixels)], step)
        elif isinstance(logger, MLFlowLogger):
            image_path = f"{title.replace(' ', '_')}/{step:08d}.png"
            logger.experiment.log_image(logger.run_id, Image.fromarray(pixels), image_path)

    def _upload_logs(self, name: str) -> None:
        logger = self._loggers.get(name)
        if logger is not None:
            logger.save()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        if not self._run.is_local:
            for path in (p for p in (self._log_folder / name).rglob("*") if p.is_file()):
                self._run.upload(path, path.relative_to(self._log_folder).as_posix())

    def _close_logger(self, name: str) -> None:
        if logger := self._loggers.get(name):
            logger.finalize("success")
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()


def _tag_metrics(record: dict[str, float]) -> dict[str, float]:
    """A step's metrics under the names that loggers show: train/loss, val/loss."""
    tagged_metrics = {}
    for metric_name, value in record.items():
        if metric_name.startswith("val_"):
            tagged_metrics[f"val/{metric_name.removeprefix('val_')}"] = value
        elif metric_name != "step":
            tagged_metrics[f"train/{metric_name}"] = value
    return tagged_metrics
