"""What happens beside the training step: samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dreambooth_ray.config.schema import Config
from dreambooth_ray.diffusion.components import load_components
from dreambooth_ray.diffusion.engine import Engine
from dreambooth_ray.diffusion.request import Request
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.tracking import Tracking


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
        """Draw with the weights a bundle would have now; training shares no randomness with it."""
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
        with pl_module.averaged():
            pictures = engine.draw(requests)
        for request, drawn in zip(requests, pictures, strict=True):
            name = f"samples/{request.prompt}"
            self._tracking.add_picture(name, np.asarray(drawn.image), step)
        pl_module.unet.train(self._config.train.unet)
        if pl_module.text_encoder is not None:
            pl_module.text_encoder.train()
