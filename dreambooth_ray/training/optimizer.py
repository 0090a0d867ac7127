"""Which optimizer moves which weights at which rate."""

import contextlib
import io
import math
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dreambooth_ray.config.learning_rate_rules import find_part_rates
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import TrainConfig
from dreambooth_ray.training.stochastic_rounding import StochasticRoundingOptimizer

# In the names of an adapter's weights, by peft.
_SECOND_MATRIX = ".lora_B."


def parameter_groups(config: Config, module: nn.Module) -> list[dict[str, Any]]:
    """Trained weights by rate and decay: one group, unless the configuration parts them."""
    part_rates = find_part_rates(config)
    loraplus_ratio = config.train.lora.loraplus_lr_ratio if config.train.method == "lora" else None
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    # Apart, and last: the rates of parts are found by their place.
    loraplus_groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        rate, weight_decay = part_rates[_find_part(name)]
        if loraplus_ratio and _SECOND_MATRIX in name:
            # LoRA+ (arXiv 2402.12354).
            loraplus_groups.setdefault((rate * loraplus_ratio, weight_decay), []).append(parameter)
        else:
            groups.setdefault((rate, weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay}
        for (rate, weight_decay), parameters in (*groups.items(), *loraplus_groups.items())
    ]


def _find_part(name: str) -> str:
    if name.endswith(".token_embedding.rows"):
        return "words"
    return "text_encoder" if name.startswith("text_encoder") else "unet"


def make_optimizer(config: Config, module: nn.Module) -> Optimizer:
    """The configured optimizer over the weights that are trained."""
    optimizer = _make_by_name(config.train, parameter_groups(config, module))
    if config.train.weight_dtype == "bfloat16":
        return StochasticRoundingOptimizer(optimizer, config.seed)
    return optimizer


def _make_by_name(train: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    if train.optimizer == "prodigy":
        return _make_prodigy(train, groups)
    if train.optimizer == "adamw8bit":
        return _make_adamw8bit(train, groups)
    if train.optimizer == "adafactor":
        return _make_adafactor(train, groups)
    if train.optimizer == "lion":
        return _make_lion(train, groups)
    if train.optimizer == "schedulefree-adamw":
        return _make_schedulefree(train, groups)
    # A fused step unscales gradients itself, behind the back of clipping.
    is_fused = train.precision != "16-mixed"
    return AdamW(groups, lr=train.lr, weight_decay=train.weight_decay, fused=is_fused)


def _make_prodigy(train: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    from prodigyopt import Prodigy  # noqa: PLC0415

    # It prints that its weight decay is decoupled, which is what we ask for.
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer: Optimizer = Prodigy(
            groups,
            lr=train.lr,
            betas=(0.9, 0.99),
            weight_decay=train.weight_decay,
            use_bias_correction=True,
            safeguard_warmup=train.lr_warmup_steps > 0,
        )
    return optimizer


def _make_adamw8bit(train: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415

    optimizer: Optimizer = AdamW8bit(groups, lr=train.lr, weight_decay=train.weight_decay)
    return optimizer


def _make_adafactor(train: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """At the configured rate, as trainers of images use it: the rate that the paper's own scaling
    finds is relative to a weight's size, and an adapter's begins at zero.
    """
    from transformers.optimization import Adafactor  # noqa: PLC0415

    optimizer: Optimizer = Adafactor(
        groups,
        lr=train.lr,
        weight_decay=train.weight_decay,
        scale_parameter=False,
        relative_step=False,
    )
    return optimizer


def _make_lion(train: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    # Its `foreach` variant fails on a step without gradients, as `skip_unless_finite` makes them.
    from lion_pytorch import Lion  # noqa: PLC0415

    optimizer: Optimizer = Lion(groups, lr=train.lr, weight_decay=train.weight_decay)
    return optimizer


def _make_schedulefree(train: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """In training mode, and it stays in that: see `ScheduleFreeAverage`."""
    from schedulefree import AdamWScheduleFree  # noqa: PLC0415

    optimizer: Any = AdamWScheduleFree(groups, lr=train.lr, weight_decay=train.weight_decay)
    optimizer.train()
    return cast(Optimizer, optimizer)


class RateSchedule:
    """Factor of the learning rate: a linear warm-up, then constant, or falling to zero."""

    def __init__(self, kind: str, num_warmup: int, num_steps: int) -> None:
        self.kind, self.num_warmup, self.num_steps = kind, num_warmup, num_steps

    def __call__(self, step: int) -> float:
        """Factor at optimizer step `step`, counted from 0; 0 after the last."""
        if step < self.num_warmup or self.kind == "constant":
            return min(1.0, (step + 1) / (self.num_warmup + 1))
        num_decay_steps = self.num_steps - self.num_warmup
        decay_progress = min(1.0, (step - self.num_warmup) / max(1, num_decay_steps))
        return (
            1 - decay_progress
            if self.kind == "linear"
            else (1 + math.cos(math.pi * decay_progress)) / 2
        )


def make_rate_schedule(train: TrainConfig) -> RateSchedule:
    """As configured."""
    return RateSchedule(train.lr_schedule, train.lr_warmup_steps, train.steps)


def apply_configured_rates(
    config: Config, module: nn.Module, optimizer: Optimizer, scheduler: LambdaLR
) -> None:
    """Give an optimizer and its scheduler the configured rates, decays and schedule, in place.

    A checkpoint brings back those that it was saved with, and its run may go on with others. Where
    they are the same, nothing changes.
    """
    groups, rate_schedule = parameter_groups(config, module), make_rate_schedule(config.train)
    rate_factor = rate_schedule(scheduler.last_epoch)
    scheduler.base_lrs = [group["lr"] for group in groups]
    scheduler.lr_lambdas = [rate_schedule] * len(groups)
    for group, configured_group in zip(optimizer.param_groups, groups, strict=True):
        group["initial_lr"] = configured_group["lr"]
        group["weight_decay"] = configured_group["weight_decay"]
        group["lr"] = configured_group["lr"] * rate_factor


class WeightAverage(Protocol):
    """weights: averages of trained weights, by name; none before the first step."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """By name."""

    def update(self, current: Mapping[str, Tensor], step: int) -> None:
        """After optimizer step `step`, counted from 1, which led to `current`."""


class ScheduleFreeAverage:
    """The average that schedule-free AdamW learns (arXiv 2405.15682).

    A trained weight is y, between the average x and what is stepped, z: y = (1 - b) z + b x. The
    optimizer's own `eval` turns y into x in place, and `train` back, which rounds both ways: a run
    that was looked at would go on with other numbers. So x is computed beside y when it is needed.
    """

    def __init__(self, optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> None:
        """names: of the weights that the optimizer steps"""
        self._optimizer, self._names = optimizer, names

    @property
    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """x, by name; none before the first step."""
        average_weights = {}
        for group in self._optimizer.param_groups:
            lerp_weight = 1 - 1 / group["betas"][0]
            for parameter in group["params"]:
                z_weight = self._optimizer.state.get(parameter, {}).get("z")
                if z_weight is not None:
                    average_weights[self._names[parameter]] = parameter.detach().lerp(
                        z_weight, lerp_weight
                    )
        return average_weights

    def update(self, current: Mapping[str, Tensor], step: int) -> None:
        """Nothing: the optimizer's step has done it."""


class ExponentialMovingAverage:
    """Exponential moving average of trained weights, by name.

    Its window grows with the number of steps: with a fixed decay the untrained weights would
    keep a share of decay ** steps.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}

    def update(self, current: Mapping[str, Tensor], step: int) -> None:
        """Move towards the weights after optimizer step `step`, counted from 1."""
        if not self.weights:
            # In float32: an average in bfloat16 would stand still.
            self.weights = {n: w.detach().clone().float() for n, w in current.items()}
            return
        for name, weight_tensor in current.items():
            self.weights[name] = self.weights[name].to(weight_tensor.device)
        average_weights = [self.weights[name] for name in current]
        decay = min(self.decay, (1 + step) / (10 + step))
        average_in_place = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average_in_place(average_weights, [w.detach().float() for w in current.values()], step)
