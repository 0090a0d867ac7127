"""What happens after each optimizer step, and at the end of a training, in one place and order.

Lightning calls callbacks in the order of a list, which is easily changed by mistake; here the
order is written out. Only the loss's check, the metrics log and the checkpoint can end a run.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dreambooth_ray.compat.lightning_state import set_batch_progress
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.samples import TrainingImageSampler
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.step_metrics import StepMetrics
from dreambooth_ray.training.callbacks.validation import Validation, compute_validation_losses
from dreambooth_ray.training.checkpoint.last_local_checkpoint import LastLocalCheckpoint
from dreambooth_ray.training.checkpoint.save import CheckpointSaver
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.metrics_log import FAILURES, RESTARTS, MetricsLog
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.nan_guard import NanGuard
from dreambooth_ray.training.preemption import PreemptionWatcher
from dreambooth_ray.training.step_evaluator import StepEvaluator
from dreambooth_ray.training.worker_messages import post_message


class TrainingStepCallback(Callback):
    """Lightning's only callback of the product.

    metrics: of the last step that was read
    on_loaded: called once all workers have loaded their state
    evaluator: evaluates between steps, on the first worker
    """

    def __init__(
        self,
        run: Store,
        dataset: TrainingDataset,
        *,
        side_work: SideWork,
        loggers: Loggers,
        guard: NanGuard,
        saver: CheckpointSaver | None = None,
        validation: Validation | None = None,
        sampler: TrainingImageSampler | None = None,
        preemption: PreemptionWatcher | None = None,
        num_restarts: int = 0,
        read_every: int | None = None,
        lease: int = 1,
    ) -> None:
        """num_restarts: of the run so far; read_every: as StepMetrics has it; lease: number of the
        run's lease
        """
        self._run, self._dataset, self._side_work, self._loggers = run, dataset, side_work, loggers
        self._guard, self._step_metrics = guard, StepMetrics(read_every)
        self._saver, self._validation, self._sampler = saver, validation, sampler
        self._preemption, self._num_restarts = preemption, num_restarts
        self._lease = lease
        self._metrics_log: MetricsLog | None = None
        self._last_read_s = time.monotonic()
        self.metrics: dict[str, float] = {}
        self.on_loaded: Callable[[], None] | None = None
        self.evaluator: StepEvaluator | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first worker opens the metrics log, dropping what was written after the checkpoint,
        then loggers, and listens to requests to stop.
        """
        if self.on_loaded is not None:
            self.on_loaded()
        if trainer.is_global_zero:
            self._metrics_log = MetricsLog(self._run, self._dataset.start, self._lease)
            self._loggers.open(self._metrics_log.records)
        if self._saver is not None:
            self._saver.start(self._metrics_log)
        self._last_read_s = time.monotonic()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count parts of steps as this number of workers does."""
        num_batches = int(checkpoint["global_step"]) * trainer.accumulate_grad_batches
        set_batch_progress(checkpoint, num_batches)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """After a part of a step that ends it: validate, record, sample, evaluate, save."""
        if not batch.ends_step:
            return
        assert isinstance(pl_module, DreamBoothModule)
        step = trainer.global_step
        record = (
            self._run_validation(trainer, pl_module, step) | self._count_restarts_and_failures()
        )
        wants_stop = self._saver is not None and self._saver.wants_stop
        wants_preemption_check = self._preemption is not None and self._preemption.is_check_due
        self._step_metrics.add(trainer, pl_module, record, wants_stop, wants_preemption_check)
        is_save_due = self._saver is not None and self._saver.is_due(trainer)
        if is_save_due or self._step_metrics.is_due(step, pl_module.device):
            self._record_metrics(pl_module)
            trainer.should_stop = trainer.should_stop or self._step_metrics.is_stop_requested
            is_save_due = self._are_hosts_leaving(step)
        self._sample_images(pl_module, step)
        self._run_step_evaluator(pl_module, step)
        if self._saver is not None and (is_save_due or self._saver.is_due(trainer)):
            self._saver.save(trainer, self.metrics)

    def _are_hosts_leaving(self, step: int) -> bool:
        """Whether there is a new notice that hosts will be taken away; a collective call."""
        if self._preemption is None or not self._step_metrics.take_preemption_check_request():
            return False
        preemption_notice = self._preemption.ask_ray_for_notice()
        if preemption_notice is not None and self._metrics_log is not None:
            notice_text = f"{preemption_notice}: a checkpoint is saved after step {step}"
            self._side_work.submit(
                "telling of a notice", lambda: post_message(self._run, notice_text)
            )
        return preemption_notice is not None

    def _run_validation(
        self, trainer: pl.Trainer, module: DreamBoothModule, step: int
    ) -> dict[str, float]:
        if self._validation is None or not self._validation.is_due(step):
            return {}
        compute_losses = partial(compute_validation_losses, trainer, module, self._side_work)
        validation_metrics = self._validation.validate(step, compute_losses)
        trainer.should_stop = trainer.should_stop or self._validation.has_stalled
        return validation_metrics

    def _count_restarts_and_failures(self) -> dict[str, float]:
        restart_and_failure_counts = {
            RESTARTS: self._num_restarts,
            FAILURES: self._side_work.num_failures,
        }
        return {name: count for name, count in restart_and_failure_counts.items() if count}

    def _record_metrics(self, module: DreamBoothModule) -> None:
        """Read what is on the device, and write it down.

        raises: DataError if too many steps in a row had no gradient that is a number
        """
        step_records = self._step_metrics.read(module.build_step_metrics)
        for record in step_records:
            self._guard.count_skipped_step(record)
        if not step_records:
            return
        self.metrics = step_records[-1]
        if self._metrics_log is not None:
            self._metrics_log.append(step_records)
            self._log_to_loggers(module, step_records)
        self._guard.check()

    def _log_to_loggers(self, module: DreamBoothModule, records: list[dict[str, float]]) -> None:
        now_s = time.monotonic()
        step_s = max(now_s - self._last_read_s, 1e-9) / len(records)
        self._last_read_s = now_s
        for record in records:
            self._loggers.log(record, module.config.total_images_per_step / step_s)

    def _sample_images(self, module: DreamBoothModule, step: int) -> None:
        if self._sampler is None or self._metrics_log is None or not self._sampler.is_due(step):
            return
        no_images: list[tuple[str, np.ndarray]] = []
        generate_images = partial(self._sampler.sample_images, module)
        for prompt, image in self._side_work.run("sampling", generate_images, no_images):
            self._loggers.add_image(f"samples/{prompt}", image, step)

    def _run_step_evaluator(self, module: DreamBoothModule, step: int) -> None:
        if self.evaluator is None or self._sampler is None or not self.evaluator.is_due(step):
            return
        generate_images = partial(self._sampler.generate_images_for_requests, module)
        evaluate_step = partial(self.evaluator.evaluate, step, generate_images)
        self._side_work.run("evaluation of the weights", evaluate_step, None)

    @property
    def kept_checkpoint(self) -> LastLocalCheckpoint | None:
        """The last checkpoint, where its files are still here; whoever uses it removes them."""
        return self._saver.kept_checkpoint if self._saver is not None else None

    def finish(self, trainer: pl.Trainer) -> None:
        """The end of a training that came to its end: last commit, metrics, loggers.

        raises: as `on_train_batch_end`
        """
        assert isinstance(trainer.lightning_module, DreamBoothModule)
        self._record_metrics(trainer.lightning_module)
        if self._saver is not None:
            self._saver.finish(trainer)
        if self._metrics_log is not None:
            self._metrics_log.close()
        self._loggers.close()

    def abandon(self) -> None:
        """The end of a training that failed: what was good before the error is committed."""
        if self._saver is not None:
            self._saver.abandon()
        if self._metrics_log is not None:
            self._side_work.run("the last metrics", self._metrics_log.close, None)
        self._loggers.close()
