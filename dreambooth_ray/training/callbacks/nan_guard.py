"""Stops a run whose loss is no number any more, before anything of it is saved."""

import math

from dreambooth_ray.errors import DataError
from dreambooth_ray.training.dataset import TrainingDataset


def check_finite(losses: tuple[float, float], step: int, dataset: TrainingDataset) -> None:
    """losses: of both halves, equal on all workers, so all stop; step: counts from 1

    raises: DataError with the step and what it saw
    """
    if all(math.isfinite(half) for half in losses):
        return
    inputs = ", ".join(dataset.describe_inputs(step - 1))
    raise DataError(
        f"step {step}: the loss is {losses}; it saw {inputs}; the last "
        "checkpoint is kept. Look at these images, lower train.lr, or take train.precision=32"
    )
