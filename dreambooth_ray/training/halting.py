"""Stopping a run from outside: whoever can write to its storage can ask for it."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import checkpoint
from dreambooth_ray.training.tracking import Tracking

LOOK_INTERVAL_S = 2.0
_EVERY_STEPS = 4


def ask_to_stop(run: Store) -> None:
    """Ask a run to checkpoint and end; it does so within a few steps."""
    run.write(layout.STOP, b"")


def is_asked_to_stop(run: Store) -> bool:
    """Whether a run has been asked to stop, and not been resumed since."""
    return run.exists(layout.STOP)


def forget_stop(run: Store) -> None:
    """Let a run go on."""
    run.remove(layout.STOP)


class Stopping(Callback):
    """Looks for the request every few seconds; on it, all workers checkpoint and end together."""

    def __init__(self, run: Store, keep: int, tracking: Tracking) -> None:
        self._run, self._keep, self._tracking = run, keep, tracking
        self._looked_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Every few steps the first worker says whether to stop, so that all do at the same one."""
        step = trainer.global_step
        if step % _EVERY_STEPS or step == trainer.max_steps or not self._agreed(trainer, pl_module):
            return
        self._tracking.flush()
        checkpoint.save(trainer, self._run, step, self._keep)
        trainer.should_stop = True

    def _agreed(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        asked = False
        now = time.monotonic()
        if trainer.is_global_zero and now - self._looked_at > LOOK_INTERVAL_S:
            self._looked_at = now
            asked = is_asked_to_stop(self._run)
        flag = torch.tensor(float(asked), device=pl_module.device)
        return bool(trainer.strategy.reduce(flag, reduce_op="max") > 0)
