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
from dreambooth_ray.diffusion.methods import is_trained
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.training.corpus import Batch


class DreamBoothModule(pl.LightningModule):
    """UNet and text encoder, of which the weights that `apply_method` has marked are trained.

    The VAE stays outside, frozen and cached, and so does a text encoder that is frozen.
    After each optimizer step `record` holds what the metrics of that step are, equal on
    every worker.
    """

    def __init__(self, config: Config, parts: Components) -> None:
        super().__init__()
        self.config = config
        # Only trained weights are in a checkpoint; on_load_checkpoint compares their names.
        self.strict_loading = False
        self.unet = parts.unet.train(is_trained(parts.unet))
        self.text_encoder: nn.Module | None = None
        if is_trained(parts.text_encoder):
            self.text_encoder = parts.text_encoder.train()
        self.schedule = parts.schedule
        self.record: dict[str, float] = {}
        self._grad_norm: Tensor | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Prediction error of one batch, halves weighted by prior.weight."""
        address = noise.generator(self.config.seed, "dropout", batch.step, self.global_rank)
        torch.manual_seed(address.initial_seed())
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = self.unet(noisy, batch.timesteps, self._hidden(batch)).sample
        wanted = objective.target(self.schedule, batch.latents, batch.noise, batch.timesteps)
        instance, prior = objective.halves(prediction, wanted, batch.is_prior)
        total: Tensor = instance + self.config.prior.weight * prior
        both = torch.stack([instance, prior]).detach()
        gathered = cast(Tensor, self.all_gather(both))
        self._halves = gathered.reshape(-1, 2).mean(dim=0)
        return total

    def _hidden(self, batch: Batch) -> Tensor:
        """(B, L, D) text embeddings: cached ones if the text encoder is frozen."""
        if batch.hidden is not None:
            return batch.hidden
        assert self.text_encoder is not None
        hidden: Tensor = self.text_encoder(batch.input_ids).last_hidden_state
        return hidden

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what does not move: the base model has it."""
        names = {n for n, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: t for n, t in state.items() if n in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """raises: CheckpointError if the weights are not exactly those that are trained."""
        names = {n for n, p in self.named_parameters() if p.requires_grad}
        odd = sorted(names ^ set(checkpoint.get("state_dict", names)))
        if odd:
            raise CheckpointError(
                f"the checkpoint holds other weights than the configuration trains, {odd[0]} for "
                "one; it is of another train.method or model"
            )

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
