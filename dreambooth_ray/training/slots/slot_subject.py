"""One subject of a batch: its data, its row of the adapters, and its own optimizer.

Legend: P numbers of the largest adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.adapter_stack import TrainingAdapterStack
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.nan_guard import FREE_TO_READ, skip_unless_finite
from dreambooth_ray.training.optimizer import (
    ExponentialMovingAverage,
    make_optimizer,
    make_rate_schedule,
)
from dreambooth_ray.training.step_record import build_step_record

# What AdamW keeps of each weight beside its number of steps.
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AdapterTrainingState:
    """A subject's training after `step` steps, by names as its checkpoint has them.

    weights, and each of `moments`: by name; update_count: the optimizer's own, less skipped steps
    average: averaged weights; empty where there are none
    """

    step: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    update_count: int = 0
    average: Mapping[str, Tensor] = field(default_factory=dict)


class SlotSubject:
    """A subject in a slot. step: optimizer steps that were taken."""

    def __init__(
        self,
        config: Config,
        dataset: TrainingDataset,
        stack: TrainingAdapterStack,
        slot: int,
        state: AdapterTrainingState,
    ) -> None:
        """state: of a new adapter, or of a checkpoint; names are peft's, below the network"""
        self.config, self.dataset, self.slot, self.step = config, dataset, slot, state.step
        self._stack, self._rank = stack, config.train.lora.rank
        self._row = stack.set_slot_adapter(slot, config.train.lora, state.weights)
        self._names = list(state.weights)
        self._optimizer = make_optimizer(config, nn.ParameterDict({"adapter": self._row}))
        self._load_moments(state)
        self._scheduler = self._make_scheduler()
        decay = config.train.ema_decay
        self._average = ExponentialMovingAverage(decay) if decay else None
        if self._average is not None:
            self._average.weights = {n: w.to(self._row.device) for n, w in state.average.items()}

    def _load_moments(self, state: AdapterTrainingState) -> None:
        if not state.moments:
            return
        optimizer_state: dict[str, Tensor] = {"step": torch.tensor(float(state.update_count))}
        if self._row.device.type not in FREE_TO_READ:
            optimizer_state["step"] = optimizer_state["step"].to(self._row.device)
        for moment_name in MOMENTS:
            optimizer_state[moment_name] = torch.zeros_like(self._row.data)
            self._stack.fill_adapter_row(
                optimizer_state[moment_name], self._rank, state.moments[moment_name]
            )
        self._optimizer.state[self._row] = optimizer_state

    def _make_scheduler(self) -> LambdaLR:
        """As configured now, whatever a checkpoint was saved with."""
        for group in self._optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return LambdaLR(self._optimizer, make_rate_schedule(self.config.train), self.step - 1)

    @property
    def is_done(self) -> bool:
        """Whether the last configured step was taken."""
        return self.step >= self.config.train.steps

    def update(self) -> Tensor:
        """Step by the slot's gradient, clipped by its own norm; a gradient that is no number
        changes nothing.

        returns: () the norm from before clipping
        """
        gradient, max_grad_norm = self._stack.gradients[self.slot], self.config.train.max_grad_norm
        grad_norm: Tensor = torch.linalg.vector_norm(gradient)
        self._row.grad = gradient
        is_norm_cheap_to_read = grad_norm.device.type in FREE_TO_READ
        if not (is_norm_cheap_to_read and bool(grad_norm + 1e-6 <= max_grad_norm)):
            nn.utils.clip_grads_with_norm_([self._row], max_grad_norm, grad_norm)
        skip_unless_finite(self._optimizer, grad_norm)
        self._optimizer.step()
        self._scheduler.step()
        if self._average is not None:
            self._average.update(self.view_weights(), self.step)
        self.step += 1
        return grad_norm

    def view_weights(self) -> dict[str, Tensor]:
        """The adapter's weights as they are now, by name."""
        return self._stack.view_adapter_row(self._row.data, self._rank)

    def view_bundle_weights(self) -> Mapping[str, Tensor]:
        """What a bundle would get now: the averaged weights, where there are any."""
        averaged_weights = self._average.weights if self._average is not None else {}
        return averaged_weights or self.view_weights()

    def view_training_state(self) -> AdapterTrainingState:
        """The training so far; views of memory that the next step changes."""
        optimizer_state = self._optimizer.state.get(self._row, {})
        return AdapterTrainingState(
            self.step,
            self.view_weights(),
            {
                moment_name: self._stack.view_adapter_row(optimizer_state[moment_name], self._rank)
                for moment_name in MOMENTS
                if moment_name in optimizer_state
            },
            int(optimizer_state["step"]) if "step" in optimizer_state else 0,
            self._average.weights if self._average is not None else {},
        )

    @property
    def optimizer(self) -> Optimizer:
        """Of this subject alone."""
        return self._optimizer

    @property
    def scheduler_state(self) -> dict[str, Any]:
        """Of its schedule."""
        return self._scheduler.state_dict()

    def build_metrics_record(self, step: int, values: list[float]) -> dict[str, float]:
        """The metrics of a step, from 1. values: of `SlotTrainer.step`, read from the device"""
        *part_losses, grad_norm = values
        learning_rate = self._scheduler.base_lrs[0] * self._scheduler.lr_lambdas[0](step - 1)
        return build_step_record(self.config, step, part_losses, grad_norm, float(learning_rate))
