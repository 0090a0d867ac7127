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
from dreambooth_ray.training.callbacks.samples import PromptSampler
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
        dataset: TrainingDataset,
        *,
        side_work: SideWork,
        loggers: Loggers,
        saver: CheckpointSaver | None = None,
        validation: Validation | None = None,
        sampler: PromptSampler | None = None,
        num_restarts: int = 0,
    ) -> None:
        """num_restarts: of the run so far"""
        self._run, self._dataset, self._side_work, self._loggers = run, dataset, side_work, loggers
        self._saver, self._validation, self._sampler = saver, validation, sampler
        self._num_restarts = num_restarts
        self._metrics_log: MetricsLog | None = None
        self._last_step_s = time.monotonic()
        self.metrics: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first worker opens the metrics log, dropping what was written after the checkpoint,
        then loggers, and listens to requests to stop.
        """
        if trainer.is_global_zero:
            self._metrics_log = MetricsLog(self._run, self._dataset.start)
            self._loggers.open(self._metrics_log.records)
        if self._saver is not None:
            self._saver.start(self._metrics_log)
        self._last_step_s = time.monotonic()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count parts of steps as this number of workers does."""
        num_batches = int(checkpoint["global_step"]) * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(
                dict.fromkeys(("ready", "started", "processed", "completed"), num_batches)
            )

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
        check_finite(pl_module.step_losses, batch.step + 1, self._dataset)
        self.metrics = pl_module.build_metrics(step) | self._run_validation(
            trainer, pl_module, step
        )
        self._record_metrics(pl_module)
        self._sample_images(pl_module, step)
        if self._saver is not None:
            self._saver.after_step(trainer, self.metrics)

    def _run_validation(
        self, trainer: pl.Trainer, module: DreamBoothModule, step: int
    ) -> dict[str, float]:
        if self._validation is None or not self._validation.is_due(step):
            return {}
        values = self._validation.validate(trainer, module, step, self._side_work)
        trainer.should_stop = trainer.should_stop or self._validation.has_stalled
        return values

    def _record_metrics(self, module: DreamBoothModule) -> None:
        if self._metrics_log is None:
            return
        counts = {RESTARTS: self._num_restarts, FAILURES: self._side_work.num_failures}
        self.metrics |= {name: count for name, count in counts.items() if count}
        self._metrics_log.append(self.metrics)
        now_s = time.monotonic()
        self._loggers.log(self.metrics, module.images_a_step / max(now_s - self._last_step_s, 1e-9))
        self._last_step_s = now_s

    def _sample_images(self, module: DreamBoothModule, step: int) -> None:
        if self._sampler is None or self._metrics_log is None or not self._sampler.is_due(step):
            return
        no_images: list[tuple[str, np.ndarray]] = []
        sample_images = partial(self._sampler.sample_images, module)
        for prompt, image in self._side_work.run("sampling", sample_images, no_images):
            self._loggers.add_image(f"samples/{prompt}", image, step)

    def finish(self, trainer: pl.Trainer) -> None:
        """The end of a training that came to its end: last commit, metrics, loggers."""
        if self._saver is not None:
            self._saver.finish(trainer)
        if self._metrics_log is not None:
            self._metrics_log.flush()
        self._loggers.close()

    def abandon(self) -> None:
        """The end of a training that failed: what was good before the error is committed."""
        if self._saver is not None:
            self._saver.abandon()
        self._loggers.close()
