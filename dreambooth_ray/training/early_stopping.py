"""When a run ends before its last step, by its validation losses. Pure."""

from typing import Any

from dreambooth_ray.config.training import ValidationConfig

VALIDATION_LOSS = "val_loss"


def find_stop_step(losses: list[tuple[int, float]], validation: ValidationConfig) -> int | None:
    """The step at which a run ends early, or None: a function of its validation losses alone.

    losses: (step, loss) in order
    """
    best_loss, num_without_gain = float("inf"), 0
    for step, loss in losses:
        if loss < best_loss - validation.min_delta:
            best_loss, num_without_gain = loss, 0
        else:
            num_without_gain += 1
        if validation.patience and num_without_gain >= validation.patience:
            return step
    return None


def list_validation_losses(records: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of the validations among a run's metrics."""
    return [(r["step"], r[VALIDATION_LOSS]) for r in records if VALIDATION_LOSS in r]
