"""What each optimizer needs, keeps of a weight, and can be used with. No torch."""

from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal[
    "adamw", "adamw8bit", "adafactor", "lion", "schedulefree-adamw", "prodigy"
]  # fmt: skip


@dataclass(frozen=True)
class OptimizerTraits:
    """state_bytes: of a trained float32 weight; package: that it is imported from, "" for torch

    is_factored: keeps means of a matrix's rows and columns, which `state_bytes` has not
    averages: whether what it learns is an average of the weights that are stepped
    rate_divisor: of the rate that AdamW would take
    is_separable: whether a weight's step needs no other weight's, and its own package no part in it
    """

    state_bytes: float
    package: str = ""
    is_factored: bool = False
    averages: bool = False
    rate_divisor: float = 1.0
    strategies: tuple[str, ...] = ("ddp", "fsdp2")
    is_separable: bool = False


TRAITS: dict[str, OptimizerTraits] = {
    # Two moments.
    "adamw": OptimizerTraits(8.0, strategies=("ddp", "fsdp2", "deepspeed"), is_separable=True),
    # In 8 bits, with their scales.
    "adamw8bit": OptimizerTraits(2.1, "bitsandbytes"),
    # Rows and columns of a shard are not those of its matrix.
    "adafactor": OptimizerTraits(0.0, is_factored=True, strategies=("ddp",), is_separable=True),
    # One moment. Each weight moves by the whole rate: 3 to 10 times lower (arXiv 2302.06675, 5).
    # DeepSpeed's converter for another number of workers wants two.
    "lion": OptimizerTraits(4.0, "lion_pytorch", rate_divisor=5, is_separable=True),
    # The second moment, and the weights that are stepped beside those between them and the average.
    "schedulefree-adamw": OptimizerTraits(8.0, "schedulefree", averages=True, strategies=("ddp",)),
    # The first weights and a sum besides.
    "prodigy": OptimizerTraits(16.0),
}


def find_optimizer_obstacle(
    optimizer: str, strategy: str, lr_schedule: str, ema_decay: float | None
) -> str | None:
    """Why an optimizer can't be used with other keys of the section, and what to do."""
    traits = TRAITS[optimizer]
    if strategy not in traits.strategies:
        return (
            f"train.optimizer={optimizer} can't be sharded by train.strategy={strategy}; "
            "set train.optimizer=adamw, or train.strategy=ddp"
        )
    if traits.averages and lr_schedule != "constant":
        return (
            f"train.optimizer={optimizer} averages weights in the place of a schedule; set "
            f"train.lr_schedule=constant, or another optimizer for {lr_schedule}"
        )
    if traits.averages and ema_decay:
        return (
            f"train.optimizer={optimizer} averages weights itself; unset train.ema_decay="
            f"{ema_decay:g}, or take another optimizer"
        )
    return None


def find_rounding_obstacle(
    optimizer: str, strategy: str, precision: str, adapter_kind: str | None
) -> str | None:
    """Why trained weights can't be in bfloat16 with other keys of the section, and what to do.

    adapter_kind: of train.method=lora
    """
    separable_optimizers = [name for name, traits in TRAITS.items() if traits.is_separable]
    if precision != "bf16-mixed":
        return f"needs train.precision=bf16-mixed, and it is {precision}"
    if strategy != "ddp":
        return f"needs train.strategy=ddp: train.strategy={strategy} rounds to the nearest"
    if optimizer not in separable_optimizers:
        return (
            f"can't be stepped by train.optimizer={optimizer}; take one of "
            f"{', '.join(separable_optimizers)}"
        )
    if adapter_kind not in (None, "lora"):
        return f"is for linear layers, which train.lora.kind={adapter_kind} has none of"
    return None
