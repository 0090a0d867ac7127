"""A training's memory by a formula, for tests of what follows from it: counts take a second."""

from pathlib import Path

import pytest

from dreambooth_ray.config.forward_pass_rules import can_be_graphed
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory.training_memory import TrainingFootprint, count_worker_batch_images

MIB = 2**20
_WEIGHTS = 100
_USERS = ("memory.memory_advice", "memory.out_of_memory", "preparation")


def estimate_by_formula(config: Config, directory: Path) -> TrainingFootprint:
    """Of a model of 100 million weights that takes 200 MB an image."""
    train = config.train
    trained = {"full": _WEIGHTS, "lora": 1, "kv": 5}[train.method] * (
        2 if train.text_encoder else 1
    )
    is_half = train.precision != "32"
    frozen = (_WEIGHTS - min(_WEIGHTS, trained)) * (2 if is_half else 4)
    activations = count_worker_batch_images(config) * 200 * (0.6 if is_half else 1.0)
    activations *= 0.25 if train.gradient_checkpointing else 1.0
    gradients = 4 * trained * (2 if can_be_graphed(config) else 1)
    return TrainingFootprint(
        states_bytes=(4 + (2 if train.optimizer == "adamw8bit" else 8)) * trained * MIB,
        frozen_bytes=int(frozen * (0.3 if config.model.quantization == "nf4" else 1)) * MIB,
        activations_bytes=int(activations + gradients) * MIB,
    )


def use_formula(patch: pytest.MonkeyPatch) -> None:
    """Everybody who estimates a footprint takes the formula's."""
    for module in _USERS:
        patch.setattr(f"dreambooth_ray.{module}.estimate_training_footprint", estimate_by_formula)
