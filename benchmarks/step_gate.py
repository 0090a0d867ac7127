"""The training run's side of a StepGateActor."""

import time
from typing import Any

import pytorch_lightning as pl
import ray
from pytorch_lightning.callbacks import Callback

from benchmarks.measure import WallAndCpuTime
from dreambooth_ray.errors import DreamBoothError


class StepGate(Callback):
    """Callback of the first worker: the others wait for it in their next all-reduce.

    Between two arrivals lie whole steps with their batches, callbacks and records.
    """

    def __init__(self, gate_actor: Any) -> None:
        self._gate_actor, self._steps_left = gate_actor, 0
        self._turn_start: tuple[float, float] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take a granted step, or wait for a grant."""
        if not trainer.is_global_zero:
            return
        if self._steps_left == 0:
            elapsed = None
            if self._turn_start is not None:
                start_s, start_cpu_s = self._turn_start
                elapsed = WallAndCpuTime(
                    time.perf_counter() - start_s, time.process_time() - start_cpu_s
                )
            self._steps_left = ray.get(self._gate_actor.arrive.remote(elapsed))
            if self._steps_left == 0:
                raise DreamBoothError("the benchmark is over")
            self._turn_start = time.perf_counter(), time.process_time()
        self._steps_left -= 1
