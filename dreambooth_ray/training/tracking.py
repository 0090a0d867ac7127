"""Where a run's metrics go: the journal always, and Lightning's loggers by name."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.journal import Journal, read_metrics
from dreambooth_ray.training.module import DreamBoothModule

RUN_TAG = "dreambooth.run"


def make_logger(name: str, folder: Path, config: Config, start: int) -> Logger:
    """A logger that keeps its files in a folder of its own, going on after step `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    run_id, tracking = config.run_id or "run", config.tracking
    if name == "tensorboard":
        return TensorBoardLogger(
            folder, name="", version="", default_hp_metric=False, purge_step=start + 1
        )
    if name == "csv":
        return CSVLogger(folder, name="", version="", flush_logs_every_n_steps=10)
    if name == "wandb":
        # Offline or not, its address and its key: by WANDB_MODE and its like, as wandb reads them.
        return WandbLogger(
            name=run_id, id=run_id, project=tracking.project, save_dir=folder, resume="allow"
        )
    uri = tracking.mlflow_uri or folder.resolve().as_uri()
    if uri.startswith("file:"):
        # mlflow asks for this word since it counsels databases; a run's own folder is small.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return MLFlowLogger(
        tracking.project,
        run_name=run_id,
        run_id=_mlflow_run(uri, tracking.project, run_id),
        tracking_uri=uri,
        tags={RUN_TAG: run_id},
    )


def _mlflow_run(uri: str, project: str, run_id: str) -> str | None:
    """mlflow's own id of a run that was begun before."""
    from mlflow import MlflowClient  # noqa: PLC0415

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(project)
    if experiment is None:
        return None
    asked = f"tags.`{RUN_TAG}` = '{run_id}'"
    found = client.search_runs([experiment.experiment_id], asked, max_results=1)
    return str(found[0].info.run_id) if found else None


class Tracking(Callback):
    """Writes each step's record to the journal and to the loggers, on the first worker."""

    def __init__(self, run: Store, config: Config, start: int) -> None:
        self._run, self._config, self._start = run, config, start
        self._journal: Journal | None = None
        self._loggers: dict[str, Logger] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="dreambooth-tracking-")
        self._clock = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open all, dropping what was written after the checkpoint."""
        if not trainer.is_global_zero:
            return
        self._journal = Journal(self._run, self._start)
        place = self._run.local_path() if self._run.is_local else Path(self._folder.name)
        for name in self._config.tracking.loggers:
            self._loggers[name] = make_logger(name, place / name, self._config, self._start)
        if "csv" in self._loggers:
            # It begins its file anew.
            for record in read_metrics(self._run):
                self._loggers["csv"].log_metrics(_tagged(record), int(record["step"]))
        self._clock = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the step that has just been taken."""
        assert isinstance(pl_module, DreamBoothModule)
        if not batch.ends_step:
            return
        step = trainer.global_step
        pl_module.note_step(step)
        if self._journal is None:
            return
        record = dict(pl_module.record)
        self._journal.append(record)
        now = time.monotonic()
        rate = pl_module.images_a_step / max(now - self._clock, 1e-9)
        self._clock = now
        for logger in self._loggers.values():
            logger.log_metrics({**_tagged(record), "throughput/images_per_s": rate}, step)

    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Show an (H, W, 3) uint8 picture wherever pictures can be shown."""
        for logger in self._loggers.values():
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, picture, step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image(name, [Image.fromarray(picture)], step)
            elif isinstance(logger, MLFlowLogger):
                file = f"{name.replace(' ', '_')}/{step:08d}.png"
                logger.experiment.log_image(logger.run_id, Image.fromarray(picture), file)

    def flush(self) -> None:
        """Bring storage up to date; called before a checkpoint is committed."""
        if self._journal is None:
            return
        self._journal.flush()
        for logger in self._loggers.values():
            logger.save()
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        if not self._run.is_local:
            folder = Path(self._folder.name)
            for path in (p for p in folder.rglob("*") if p.is_file()):
                self._run.upload(path, path.relative_to(folder).as_posix())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close all."""
        self.flush()
        for logger in self._loggers.values():
            logger.finalize("success")
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
        self._folder.cleanup()


def _tagged(record: dict[str, float]) -> dict[str, float]:
    """A journal's record under the names that loggers show: train/loss, val/loss."""
    tagged = {}
    for key, value in record.items():
        if key.startswith("val_"):
            tagged[f"val/{key.removeprefix('val_')}"] = value
        elif key != "step":
            tagged[f"train/{key}"] = value
    return tagged
