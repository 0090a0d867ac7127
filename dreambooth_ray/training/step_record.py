"""What a run's metrics say of one optimizer step."""

from collections.abc import Sequence

from dreambooth_ray.config.schema import Config
from dreambooth_ray.objective.loss import prior_preserving_loss


def build_step_record(
    config: Config, step: int, part_losses: Sequence[float], grad_norm: float, rate: float
) -> dict[str, float]:
    """The metrics of optimizer step `step`, which counts from 1.

    part_losses: over photographs, then in the order of `PriorConfig.loss_weights`
    grad_norm: from before clipping; rate: learning rate of the first part that is trained
    """
    instance_loss, *prior_losses = part_losses
    metrics_record = {
        "step": step,
        "images_seen": step * config.total_images_per_step,
        "loss": prior_preserving_loss(instance_loss, prior_losses, config.prior.loss_weights),
        "instance_loss": instance_loss,
        "prior_loss": prior_losses[0],
        "output_loss": prior_losses[-1],
        "lr": rate,
        "grad_norm": grad_norm,
    }
    if config.prior.kind != "both":
        del metrics_record["output_loss"]
    return metrics_record
