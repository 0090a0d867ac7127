"""Stops a run whose loss is no number any more, before anything of it is saved."""

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dreambooth_ray.errors import DataError
from dreambooth_ray.training.corpus import Corpus
from dreambooth_ray.training.module import DreamBoothModule


class Guard(Callback):
    """Comes before all that records or saves. Losses are equal on all workers, so all stop."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """raises: DataError with the step and what it saw, if its loss is not finite"""
        assert isinstance(pl_module, DreamBoothModule)
        if batch.ends_step and not all(math.isfinite(half) for half in pl_module.step_losses):
            raise DataError(
                f"step {batch.step + 1}: the loss is {pl_module.step_losses}; it saw "
                f"{', '.join(self._corpus.inputs(batch.step))}; the last checkpoint is kept. Look "
                "at these pictures, lower train.lr, or take train.precision=32"
            )
