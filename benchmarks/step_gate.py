"""The training run's side of a turnstile."""

import time
from typing import Any

import pytorch_lightning as pl
import ray
from pytorch_lightning.callbacks import Callback

from benchmarks.measure import Spent
from dreambooth_ray.errors import DreamBoothError


class StepGate(Callback):
    """The run's side, on the first worker: the others wait for it in their next all-reduce.

    Between two arrivals lie whole steps with their batches, callbacks and records.
    """

    def __init__(self, turnstile: Any) -> None:
        self._turnstile, self._left = turnstile, 0
        self._began: tuple[float, float] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Pass, or wait for a grant."""
        if not trainer.is_global_zero:
            return
        if self._left == 0:
            spent = None
            if self._began is not None:
                wall, cpu = self._began
                spent = Spent(time.perf_counter() - wall, time.process_time() - cpu)
            self._left = ray.get(self._turnstile.arrive.remote(spent))
            if self._left == 0:
                raise DreamBoothError("the benchmark is over")
            self._began = time.perf_counter(), time.process_time()
        self._left -= 1
