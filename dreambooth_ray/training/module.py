"""The fine-tuning step as a LightningModule."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from dreambooth_ray.config.forward_pass_rules import needs_base_output
from dreambooth_ray.config.learning_rate_rules import find_part_rates
from dreambooth_ray.config.optimizers import TRAITS
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.activation_checkpointing import checkpoint_activations
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.frozen_copy import copy_base_network
from dreambooth_ray.models.precision import (
    cast_frozen_layers,
    cast_to_weight_dtype,
    use_fast_float32,
)
from dreambooth_ray.models.tensor_files import LazyTensors
from dreambooth_ray.models.trainable_params import copy_weights_into_params, has_trainable_weights
from dreambooth_ray.objective import noise
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.checkpoint.download import AVERAGE, WEIGHTS
from dreambooth_ray.training.fully_sharded import shard_networks
from dreambooth_ray.training.metrics_log import PART_RATES
from dreambooth_ray.training.nan_guard import skip_unless_finite
from dreambooth_ray.training.optimizer import (
    ExponentialMovingAverage,
    ScheduleFreeAverage,
    WeightAverage,
    apply_configured_rates,
    make_optimizer,
    make_rate_schedule,
)
from dreambooth_ray.training.prediction_errors import PredictionErrorCalculator, combine_losses
from dreambooth_ray.training.recorded_forwards import StepForwards
from dreambooth_ray.training.step_record import build_step_record
from dreambooth_ray.training.stochastic_rounding import compute_gradient_norm


class DreamBoothModule(pl.LightningModule):
    """Denoiser and text encoders; the weights that `apply_train_method` has marked are trained.

    They are attributes by the names of their folders, as weights in checkpoints are called. The VAE
    stays outside, frozen and cached, and so do text encoders that are frozen.
    After each optimizer step `take_values` returns its values, still on the device.
    """

    def __init__(self, config: Config, components: Components) -> None:
        super().__init__()
        self.config = config
        # Only trained weights are in a checkpoint; on_load_checkpoint compares their names.
        self.strict_loading = False
        self._functions, self._denoiser_name = components.functions, components.family.denoiser.name
        denoiser = components.denoiser.train(has_trainable_weights(components.denoiser))
        self.add_module(self._denoiser_name, denoiser)
        self._text_encoder_names = [
            name
            for name, encoder in components.text_encoders.items()
            if has_trainable_weights(encoder)
        ]
        for name in self._text_encoder_names:
            self.add_module(name, components.text_encoders[name].train())
        is_cast_here = config.train.strategy == "ddp"
        if is_cast_here:
            # The others shard and cast weights themselves.
            for network in (denoiser, *self.text_encoders.values()):
                cast_frozen_layers(network, config.train.precision)
        # In a tuple: it is neither trained nor saved.
        self._base_denoisers: tuple[nn.Module, ...] = ()
        if needs_base_output(config):
            base_denoiser = copy_base_network(denoiser, shares_weights=is_cast_here)
            cast_frozen_layers(base_denoiser, config.train.precision)
            self._base_denoisers = (base_denoiser,)
        for network in (denoiser, *self.text_encoders.values()):
            cast_to_weight_dtype(network, config.train.weight_dtype)
        if config.train.gradient_checkpointing:
            checkpoint_activations(denoiser, self.text_encoders.values())
        self.average: WeightAverage | None = (
            ExponentialMovingAverage(config.train.ema_decay) if config.train.ema_decay else None
        )
        if config.cluster.gpus:
            # Convolutions of a GPU read channels last; others are copied there first.
            for network in (denoiser, *self._base_denoisers):
                network.to(memory_format=torch.channels_last)
        self._forwards = StepForwards(
            config, self._functions, denoiser, self.text_encoders, *self._base_denoisers
        )
        self._errors = PredictionErrorCalculator(config, components, self._forwards)
        self._grad_norm: Tensor | None = None
        self._is_sharded = False
        self._part_losses: list[Tensor] = []

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer."""
        return self.get_submodule(self._denoiser_name)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """Those that are trained, by name."""
        return {name: self.get_submodule(name) for name in self._text_encoder_names}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Prediction error of one batch, and weighted, of what is kept."""
        generator = noise.make_seeded_generator(
            self.config.seed, "dropout", batch.step, self.global_rank
        )
        self._seed_dropout(generator.initial_seed())
        loss, part_losses = self.compute_loss(batch)
        self._part_losses.append(part_losses.detach())
        return loss

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `combine_losses`."""
        errors, preservation_errors = self._errors.compute_all_errors(batch)
        num_photographs = sum(forward.num_photographs for forward in batch.same_shape_batches)
        return combine_losses(self.config.prior, errors, preservation_errors, num_photographs)

    def _seed_dropout(self, seed: int) -> None:
        # torch.manual_seed formats a stack for each kind of device that this process does not use.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def compute_errors(self, batch: Batch) -> Tensor:
        """(B,) error of each sample's prediction in one forward, weighted as configured."""
        return self._errors.compute_errors(batch)

    @contextmanager
    def using_averaged_weights(self) -> Iterator[None]:
        """With the averaged weights in place of the current ones, where there are any."""
        average_weights = self.average.weights if self.average is not None else {}
        trained_weights = {n: p.data for n, p in self.named_parameters() if n in average_weights}
        current_weights = {n: w.clone() for n, w in trained_weights.items()}
        for name, weight_tensor in trained_weights.items():
            weight_tensor.copy_(average_weights[name])
        try:
            yield
        finally:
            for name, weight_tensor in trained_weights.items():
                weight_tensor.copy_(current_weights[name])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step itself, then the average of what came of it."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            trained_weights = {n: p for n, p in self.named_parameters() if p.requires_grad}
            self.average.update(trained_weights, self.trainer.global_step)

    def on_fit_start(self) -> None:
        """What a GPU computes in float32, it computes in TF32."""
        use_fast_float32(self.device)
        for network in self._base_denoisers:
            network.to(self.device)

    def on_train_start(self) -> None:
        """Rates by the configuration, whatever a checkpoint has brought back."""
        optimizer, lr_schedulers = self.trainer.optimizers[0], cast(Any, self.lr_schedulers())
        apply_configured_rates(self.config, self, optimizer, lr_schedulers)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Drop the last step's gradients now: Lightning does it after the forward only."""
        if self.config.train.strategy != "deepspeed" and batch.starts_step:
            self.optimizers().zero_grad(set_to_none=True)  # type: ignore[union-attr]

    def on_fit_end(self) -> None:
        """Lightning moves a module to the CPU when it has fitted it."""
        self._forwards.release()

    def configure_model(self) -> None:
        """Shard the networks, where the strategy leaves that to the module."""
        if self.config.train.strategy == "fsdp2" and not self._is_sharded:
            assert self.device_mesh is not None
            blocks_by_network = {self._denoiser_name: self._functions.list_blocks(self.denoiser)}
            shard_networks(self, self.device_mesh["data_parallel"], blocks_by_network)
            self._is_sharded = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what does not move: the base model has it. Add the averaged weights."""
        if self.config.train.strategy != "ddp":
            return  # these decide themselves which shards they save
        trained_names = {n for n, p in self.named_parameters() if p.requires_grad}
        all_weights = checkpoint[WEIGHTS]
        checkpoint[WEIGHTS] = {n: t for n, t in all_weights.items() if n in trained_names}
        if self.average is not None and (average_weights := self.average.weights):
            checkpoint[AVERAGE] = average_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the weights, one after the other, where they are in a file of their own.

        raises: CheckpointError if the weights are not exactly those that are trained
        """
        trained_weights = {n: p for n, p in self.named_parameters() if p.requires_grad}
        trained_names = trained_weights.keys()
        mismatched_names = sorted(trained_names ^ set(checkpoint.get(WEIGHTS, trained_names)))
        if mismatched_names:
            raise CheckpointError(
                "the checkpoint holds other weights than the configuration trains, "
                f"{mismatched_names[0]} for one; it is of another train.method or model"
            )
        weights = checkpoint.get(WEIGHTS)
        if isinstance(weights, LazyTensors):
            copy_weights_into_params(trained_weights, weights)
            # Lightning would read them all at once.
            checkpoint[WEIGHTS] = {}
        if isinstance(self.average, ExponentialMovingAverage):
            # None where the run that goes on had no average: it begins with the next step.
            self.average.weights = dict(checkpoint.get(AVERAGE, {}))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm and keep the norm from before: one pass for both."""
        if self.config.train.strategy == "deepspeed":
            return  # it clips in its own step
        # From the optimizer: to walk through the module for them takes milliseconds.
        trained_weights = [p for group in optimizer.param_groups for p in group["params"]]
        max_grad_norm = self.config.train.max_grad_norm
        gradients = [p.grad for p in trained_weights if p.grad is not None]
        grad_norm = compute_gradient_norm(gradients)
        # To multiply by 1 would change nothing; only on a CPU is it free to ask.
        is_cpu = grad_norm.device.type == "cpu" and not isinstance(grad_norm, DTensor)
        if not (is_cpu and bool(grad_norm + 1e-6 <= max_grad_norm)):
            nn.utils.clip_grads_with_norm_(trained_weights, max_grad_norm, grad_norm, foreach=True)
        self._grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        if self.config.train.precision != "16-mixed":  # its scaler skips such steps itself
            skip_unless_finite(optimizer, self._grad_norm)

    def take_values(self) -> tuple[Tensor, Tensor]:
        """(2,) or (3,) this worker's losses of the step just taken, and () its gradient's norm.

        Both on the device; the norm is equal on all workers, from before clipping.
        """
        losses, self._part_losses = torch.stack(self._part_losses).mean(dim=0), []
        if self.config.train.strategy == "deepspeed":
            engine = cast(Any, self.trainer.strategy).deepspeed_engine
            return losses, torch.as_tensor(engine.get_global_grad_norm(), device=losses.device)
        assert self._grad_norm is not None
        return losses, self._grad_norm

    def build_step_metrics(
        self, step: int, part_losses: Sequence[float], grad_norm: float
    ) -> dict[str, float]:
        """The metrics of optimizer step `step`, which counts from 1.

        part_losses: as of `compute_loss`, over all workers
        """
        rate, other_part_rates = self._find_rates(step)
        return build_step_record(self.config, step, part_losses, grad_norm, rate) | other_part_rates

    def _find_rates(self, step: int) -> tuple[float, dict[str, float]]:
        """The rate of a step, of the first part that is trained, and others that differ, by key."""
        lr_schedulers: Any = self.lr_schedulers()
        # The scheduler may or may not have moved on already; its table has not.
        rate_factor = lr_schedulers.lr_lambdas[0](step - 1)
        group_rates = [float(rate * rate_factor) for rate in lr_schedulers.base_lrs]
        part_rates = find_part_rates(self.config)
        distinct_rates = list(dict.fromkeys(part_rates.values()))
        rate_by_part = {
            part: group_rates[distinct_rates.index(rate)] for part, rate in part_rates.items()
        }
        return group_rates[0], {
            PART_RATES[part]: rate for part, rate in rate_by_part.items() if rate != group_rates[0]
        }

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The configured optimizer under the configured schedule."""
        optimizer = make_optimizer(self.config, self)
        if TRAITS[self.config.train.optimizer].averages:
            name_by_weight = {p: n for n, p in self.named_parameters() if p.requires_grad}
            self.average = ScheduleFreeAverage(optimizer, name_by_weight)
        lr_scheduler = LambdaLR(optimizer, make_rate_schedule(self.config.train))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"},
        }
