"""The fine-tuning step as a LightningModule."""

from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from dreambooth_ray.config.schema import Config
from dreambooth_ray.diffusion import loss as objective
from dreambooth_ray.diffusion import noise
from dreambooth_ray.diffusion.components import Components
from dreambooth_ray.training.corpus import Batch


class DreamBoothModule(pl.LightningModule):
    """UNet and, if wanted, text encoder; the VAE stays outside, frozen and cached.

    After each optimizer step `record` holds what the metrics of that step are, equal on
    every worker.
    """

    def __init__(self, config: Config, parts: Components) -> None:
        super().__init__()
        self.config = config
        self.unet = parts.unet.train()
        trained = config.train.text_encoder
        self.text_encoder = parts.text_encoder.train(trained).requires_grad_(trained)
        self.schedule = parts.schedule
        self.record: dict[str, float] = {}
        self._grad_norm: Tensor | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Prediction error of one batch, halves weighted by prior.weight."""
        address = noise.generator(self.config.seed, "dropout", batch.step, self.global_rank)
        torch.manual_seed(address.initial_seed())
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        hidden = self.text_encoder(batch.input_ids).last_hidden_state
        prediction = self.unet(noisy, batch.timesteps, hidden).sample
        wanted = objective.target(self.schedule, batch.latents, batch.noise, batch.timesteps)
        instance, prior = objective.halves(prediction, wanted, batch.is_prior)
        total: Tensor = instance + self.config.prior.weight * prior
        both = torch.stack([instance, prior]).detach()
        gathered = cast(Tensor, self.all_gather(both))
        self._halves = gathered.reshape(-1, 2).mean(dim=0)
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm and keep the norm from before: one pass for both."""
        self._grad_norm = nn.utils.clip_grad_norm_(
            self._trained(), self.config.train.max_grad_norm, foreach=True
        )

    @property
    def images_a_step(self) -> int:
        """Photographs and class images that one optimizer step sees, over all workers."""
        return self.config.train.batch_size * (2 if self.config.prior.count else 1)

    def note_step(self, step: int) -> None:
        """Fill `record` after optimizer step `step`, which counts from 1."""
        instance, prior = (float(x) for x in self._halves.double())
        schedulers: Any = self.lr_schedulers()
        self.record = {
            "step": step,
            "images_seen": step * self.images_a_step,
            "loss": instance + self.config.prior.weight * prior,
            "instance_loss": instance,
            "prior_loss": prior,
            "lr": float(self._lr_before(schedulers, step)),
            "grad_norm": float(self._grad_norm) if self._grad_norm is not None else float("nan"),
        }

    def _lr_before(self, schedulers: Any, step: int) -> float:
        # The scheduler may or may not have moved on already; its table has not.
        return float(schedulers.base_lrs[0] * schedulers.lr_lambdas[0](step - 1))

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Fused AdamW under a linear warm-up to a constant rate."""
        train = self.config.train
        optimizer = AdamW(self._trained(), lr=train.lr, weight_decay=train.weight_decay, fused=True)
        schedule = LambdaLR(optimizer, Warmup(train.lr_warmup_steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Warmup:
    """Factor of the learning rate: linear over the first steps, then 1."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def __call__(self, step: int) -> float:
        """Factor at optimizer step `step`, counted from 0."""
        return min(1.0, (step + 1) / (self.num_steps + 1))
