"""What happens after each optimizer step, and at the end of a training, in one place and order.

Lightning calls callbacks in the order of a list, which is easily changed by mistake; here the
order is written out. Only the loss's check, the metrics log and the checkpoint can end a run.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.nan_guard import check_finite
from dreambooth_ray.training.callbacks.samples import Samples
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.validation import Validation
from dreambooth_ray.training.checkpoint.save import CheckpointSaver
from dreambooth_ray.training.dataset import Batch, TrainingDataset
from dreambooth_ray.training.metrics_log import FAILURES, RESTARTS, MetricsLog
from dreambooth_ray.training.module import DreamBoothModule


class StepSequence(Callback):
    """Lightning's only callback of the product. `metrics`: of the last step."""

    def __init__(
        self,
        run: Store,
        corpus: TrainingDataset,
        *,
        side_work: SideWork,
        loggers: Loggers,
        checkpointing: CheckpointSaver | None = None,
        validation: Validation | None = None,
        samples: Samples | None = None,
        num_restarts: int = 0,
    ) -> None:
        """num_restarts: of the run so far"""
        self._run, self._corpus, self._side_work, self._loggers = run, corpus, side_work, loggers
        self._checkpointing, self._validation, self._samples = checkpointing, validation, samples
        self._num_restarts = num_restarts
        self._log: MetricsLog | None = None
        self._clock = time.monotonic()
        self.metrics: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first worker opens the metrics log, dropping what was written after the checkpoint,
        then loggers, and listens to requests to stop.
        """
        if trainer.is_global_zero:
            self._log = MetricsLog(self._run, self._corpus.start)
            self._loggers.open(self._log.records)
        if self._checkpointing is not None:
            self._checkpointing.start(self._log)
        self._clock = time.monotonic()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count parts of steps as this number of workers does."""
        done = int(checkpoint["global_step"]) * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), done))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """After a part of a step that ends it: check, validate, record, sample, save."""
        if not batch.ends_step:
            return
        assert isinstance(pl_module, DreamBoothModule)
        step = trainer.global_step
        check_finite(pl_module.step_losses, batch.step + 1, self._corpus)
        self.metrics = pl_module.build_metrics(step) | self._validate(trainer, pl_module, step)
        self._record(pl_module)
        self._sample(pl_module, step)
        if self._checkpointing is not None:
            self._checkpointing.after_step(trainer, self.metrics)

    def _validate(
        self, trainer: pl.Trainer, module: DreamBoothModule, step: int
    ) -> dict[str, float]:
        if self._validation is None or not self._validation.is_due(step):
            return {}
        values = self._validation.validate(trainer, module, step, self._side_work)
        trainer.should_stop = trainer.should_stop or self._validation.has_stalled
        return values

    def _record(self, module: DreamBoothModule) -> None:
        if self._log is None:
            return
        counts = {RESTARTS: self._num_restarts, FAILURES: self._side_work.failures}
        self.metrics |= {name: count for name, count in counts.items() if count}
        self._log.append(self.metrics)
        now = time.monotonic()
        self._loggers.log(self.metrics, module.images_a_step / max(now - self._clock, 1e-9))
        self._clock = now

    def _sample(self, module: DreamBoothModule, step: int) -> None:
        if self._samples is None or self._log is None or not self._samples.is_due(step):
            return
        none: list[tuple[str, np.ndarray]] = []
        sample = partial(self._samples.sample, module)
        for prompt, image in self._side_work.run("sampling", sample, none):
            self._loggers.add_image(f"samples/{prompt}", image, step)

    def finish(self, trainer: pl.Trainer) -> None:
        """The end of a training that came to its end: last commit, metrics, loggers."""
        if self._checkpointing is not None:
            self._checkpointing.finish(trainer)
        if self._log is not None:
            self._log.flush()
        self._loggers.close()

    def abandon(self) -> None:
        """The end of a training that failed: what was good before the error is committed."""
        if self._checkpointing is not None:
            self._checkpointing.abandon()
        self._loggers.close()
