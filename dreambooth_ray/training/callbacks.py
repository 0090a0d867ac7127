"""What happens beside the training step: metrics, TensorBoard, samples, checkpoints."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch.utils.tensorboard import SummaryWriter

from dreambooth_ray.config.schema import Config
from dreambooth_ray.diffusion.components import load_components
from dreambooth_ray.diffusion.engine import Engine
from dreambooth_ray.diffusion.request import Request
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import checkpoint
from dreambooth_ray.training.journal import Journal
from dreambooth_ray.training.module import DreamBoothModule


class Tracking(Callback):
    """Writes each step's record to the journal and to TensorBoard, on the first worker."""

    def __init__(self, run: Store, start: int) -> None:
        self._run, self._start = run, start
        self._journal: Journal | None = None
        self._writer: SummaryWriter | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="dreambooth-tensorboard-")
        self._clock = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open both, dropping what was written after the checkpoint."""
        if trainer.is_global_zero:
            self._journal = Journal(self._run, self._start)
            place = (
                self._run.local_path(layout.TENSORBOARD)
                if self._run.is_local
                else Path(self._folder.name)
            )
            self._writer = SummaryWriter(str(place), purge_step=self._start + 1)
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
        step = trainer.global_step
        if not batch.ends_step:
            return
        pl_module.note_step(step)
        if self._journal is None or self._writer is None:
            return
        record = dict(pl_module.record)
        self._journal.append(record)
        now = time.monotonic()
        rate = pl_module.images_a_step / max(now - self._clock, 1e-9)
        self._clock = now
        for key in ("loss", "instance_loss", "prior_loss", "lr", "grad_norm"):
            self._writer.add_scalar(f"train/{key}", record[key], step)
        self._writer.add_scalar("throughput/images_per_s", rate, step)

    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Show an (H, W, 3) uint8 picture in TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring storage up to date; called before a checkpoint is committed."""
        if self._journal is not None and self._writer is not None:
            self._journal.flush()
            self._writer.flush()
            if not self._run.is_local:
                for path in Path(self._folder.name).iterdir():
                    self._run.upload(path, f"{layout.TENSORBOARD}/{path.name}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close both."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
        self._folder.cleanup()


class Checkpointing(Callback):
    """Commits the complete state every `every` steps and after the last one."""

    def __init__(self, run: Store, config: Config, tracking: Tracking) -> None:
        self._run, self._config, self._tracking = run, config, tracking

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time. Metrics go first: a checkpoint never knows more than they do."""
        step, wanted = trainer.global_step, self._config.checkpoint
        if batch.ends_step and (step % wanted.every == 0 or step == self._config.train.steps):
            self._tracking.flush()
            checkpoint.save(trainer, self._run, step, wanted.keep)


class Samples(Callback):
    """Draws the sample prompts every few steps, on the first worker, into TensorBoard."""

    def __init__(self, config: Config, directory: Path, tracking: Tracking) -> None:
        self._config, self._directory, self._tracking = config, directory, tracking

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Draw with the weights of this moment; training draws nothing from this randomness."""
        every, step = self._config.sample.every, trainer.global_step
        if not batch.ends_step or not every or step % every or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, DreamBoothModule)
        parts = load_components(self._directory)
        parts.unet = pl_module.unet
        if pl_module.text_encoder is not None:
            parts.text_encoder = pl_module.text_encoder
        engine = Engine(parts, device=str(pl_module.device))
        sample = self._config.sample
        requests = [
            Request(
                prompt,
                seed=self._config.seed,
                num_inference_steps=sample.num_inference_steps,
                guidance_scale=sample.guidance_scale,
                width_px=self._config.train.resolution,
                height_px=self._config.train.resolution,
            )
            for prompt in self._config.sample_prompts
        ]
        for request, drawn in zip(requests, engine.draw(requests), strict=True):
            name = f"samples/{request.prompt}"
            self._tracking.add_picture(name, np.asarray(drawn.image), step)
        pl_module.unet.train(self._config.train.unet)
        if pl_module.text_encoder is not None:
            pl_module.text_encoder.train()
