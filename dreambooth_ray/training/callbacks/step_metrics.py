"""Metrics of optimizer steps: left on the device, and read from there once every few steps.

To read a value is to wait for all that the device still has to do. On a CPU that costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from dreambooth_ray.training.module import DreamBoothModule

# Steps between reads on a GPU. A request to stop is heard as often.
READ_EVERY = 10


@dataclass(frozen=True)
class _UnreadStep:
    """record: what the host knew at the step; values: see `DreamBoothModule.take_values`, and
    between losses and norm, whether a worker wants to stop, and to look for notices.
    """

    step: int
    record: dict[str, float]
    values: Tensor


class StepMetrics:
    """The metrics of steps not yet read, in order."""

    def __init__(self, read_every: int | None = None) -> None:
        """read_every: steps between reads; None is 1 on a CPU and READ_EVERY elsewhere"""
        self._read_every = read_every
        self._unread: list[_UnreadStep] = []
        self.is_stop_requested = False
        self._is_look_requested = False

    def add(
        self,
        trainer: pl.Trainer,
        module: DreamBoothModule,
        record: dict[str, float],
        wants_stop: bool,
        wants_look: bool = False,
    ) -> None:
        """Keep the values of the step that has just been taken; a collective call.

        record: what goes with its metrics; wants_stop: whether this worker was asked to stop
        wants_look: whether it is time, by its clock, to ask whether hosts are taken away
        """
        losses, grad_norm = module.take_values()
        request_flags = [
            torch.full_like(losses[:1], float(signal)) for signal in (wants_stop, wants_look)
        ]
        losses_and_flags = torch.cat([losses, *request_flags])
        if trainer.world_size > 1:
            losses_and_flags = (
                cast(Tensor, module.all_gather(losses_and_flags))
                .reshape(-1, len(losses_and_flags))
                .mean(dim=0)
            )
        step_values = torch.cat([losses_and_flags, grad_norm.detach().reshape(1)])
        self._unread.append(_UnreadStep(trainer.global_step, record, step_values))

    def is_due(self, step: int, device: torch.device) -> bool:
        """Whether it is time to read, after this step."""
        default_read_interval = 1 if device.type == "cpu" else READ_EVERY
        return step % (self._read_every or default_read_interval) == 0

    def read(self, build_metrics: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
        """The metrics of all steps since the last read; `is_stop_requested` is of them too.

        build_metrics: `DreamBoothModule.build_step_metrics`
        """
        unread_steps, self._unread = self._unread, []
        if not unread_steps:
            return []
        values_by_step = torch.stack([step.values for step in unread_steps]).tolist()
        self.is_stop_requested |= any(wants_stop > 0 for *_, wants_stop, _, _ in values_by_step)
        self._is_look_requested |= any(
            wants_preemption_check > 0 for *_, wants_preemption_check, _ in values_by_step
        )
        return [
            build_metrics(step.step, part_losses, grad_norm) | step.record
            for step, (*part_losses, _, _, grad_norm) in zip(
                unread_steps, values_by_step, strict=True
            )
        ]

    def take_preemption_check_request(self) -> bool:
        """Whether a worker wanted to look in the steps read since the last call; on all alike."""
        is_check_requested, self._is_look_requested = self._is_look_requested, False
        return is_check_requested
