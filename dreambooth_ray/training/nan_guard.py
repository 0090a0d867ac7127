"""Steps whose gradient is no number: they change no weight, are counted, and end a run in a row."""

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreambooth_ray.errors import DataError
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.metrics_log import SKIPPED

MAX_IN_A_ROW = 3
# The scaler of train.precision=16-mixed finds its scale by steps that overflow: from 2**16 down.
MAX_IN_A_ROW_SCALED = 20
# Devices whose values the host has without waiting.
FREE_TO_READ = {"cpu"}


def skip_unless_finite(optimizer: Optimizer, grad_norm: Tensor) -> None:
    """Let the optimizer's next step change nothing if the gradient is not finite.

    grad_norm: () global norm, equal on all workers
    """
    if optimizer.defaults.get("fused") and grad_norm.device.type not in FREE_TO_READ:
        # What torch's own gradient scaler sets: the kernel looks at it, and no host waits for it.
        optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # type: ignore[attr-defined]
        return
    if not bool(torch.isfinite(grad_norm)):
        # Weights without a gradient are passed over, with all that an optimizer keeps of them.
        optimizer.zero_grad(set_to_none=True)


class NanGuard:
    """Counts skipped steps as their metrics are read, and ends a run of too many in a row."""

    def __init__(self, dataset: TrainingDataset, precision: str, num_skipped: int = 0) -> None:
        """num_skipped: of the run so far"""
        self._dataset, self._num_skipped, self._num_in_a_row = dataset, num_skipped, 0
        self._max_in_a_row = MAX_IN_A_ROW_SCALED if precision == "16-mixed" else MAX_IN_A_ROW
        self._failure: str | None = None

    def count_skipped_step(self, metrics: dict[str, float]) -> None:
        """Look at the next step's metrics, equal on all workers; the count is among them then."""
        loss_and_grad_norm = (metrics["loss"], metrics["grad_norm"])
        is_skipped = not all(math.isfinite(value) for value in loss_and_grad_norm)
        self._num_in_a_row = self._num_in_a_row + 1 if is_skipped else 0
        self._num_skipped += is_skipped
        if self._num_skipped:
            metrics[SKIPPED] = self._num_skipped
        if self._num_in_a_row == self._max_in_a_row and self._failure is None:
            self._failure = self._describe_failure(metrics)

    def check(self) -> None:
        """raises: DataError if too many steps in a row were skipped"""
        if self._failure is not None:
            raise DataError(self._failure)

    def _describe_failure(self, last: dict[str, float]) -> str:
        last_skipped_step = int(last["step"])
        first_skipped_step = last_skipped_step - self._num_in_a_row + 1
        image_descriptions = ", ".join(self._dataset.describe_inputs(first_skipped_step - 1))
        return (
            f"steps {first_skipped_step} to {last_skipped_step}: the losses or the gradients are "
            f"no numbers (loss {last['loss']}, norm of the gradient {last['grad_norm']} at the "
            "last), so none of them changed a weight. "
            f"Step {first_skipped_step} saw {image_descriptions}. "
            "Look at these images, lower train.lr, or take train.precision=32"
        )
