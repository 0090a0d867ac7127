"""When a run ends: at its last step, or before, by its validation losses. Pure."""

from typing import Any

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import ValidationConfig

VALIDATION_LOSS = "val_loss"


def stops_at(losses: list[tuple[int, float]], wanted: ValidationConfig) -> int | None:
    """The step at which a run ends early, or None: a function of its validation losses alone.

    losses: (step, loss) in order
    """
    best, since = float("inf"), 0
    for step, loss in losses:
        if loss < best - wanted.min_delta:
            best, since = loss, 0
        else:
            since += 1
        if wanted.patience and since >= wanted.patience:
            return step
    return None


def validation_losses(records: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of the validations among a run's metrics."""
    return [(r["step"], r[VALIDATION_LOSS]) for r in records if VALIDATION_LOSS in r]


def last_step(config: Config, records: list[dict[str, Any]], end: int | None = None) -> int:
    """The step a run ends with, as far as its metrics tell.

    end: where its evaluations ended it, `verdict.read_end`
    """
    if end is not None:
        return end
    early = stops_at(validation_losses(records), config.validation)
    return config.train.steps if early is None else early
