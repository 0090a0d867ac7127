"""A ramp of the learning rate: which rates learn, and from which on training breaks.

Source: L. Smith 2017, "Cyclical learning rates for training neural networks" (the range test), and
the rule of fastai's and Lightning's finders: the rate at which the loss falls fastest. The loss of
a step of diffusion depends on its noise level more than on what was learnt, so here the loss is
measured on fixed images, noise and levels between the steps.

Class images are left out: they would have to be drawn first.
"""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth_ray.config.learning_rate_rules import refuse_prodigy_range_test
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.precision import cast_untrainable_encoders, resolve_device
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.callbacks.validation import ValidationSet
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.optimizer import make_optimizer

# A loss this many times the first one has run away: what comes after tells nothing.
_RUNAWAY = 2.0
# A fall of less than this share of the loss is no learning.
_LEAST_FALL = 0.01


@dataclass(frozen=True)
class RatePoint:
    """loss: mean over the fixed examples, after the step that was taken at `rate`"""

    rate: float
    loss: float


@dataclass(frozen=True)
class RateCurve:
    """Loss before the first step, then along the ramp, as far as the loss stayed in bounds."""

    first_loss: float
    points: tuple[RatePoint, ...]

    def suggest_rate(self) -> float:
        """Half way, by factors, between where the loss falls fastest and where it is lowest.

        On the recipes whose rate was chosen by whole trainings (`benchmarks/results/sweep.md`) this
        is nearer to it than either: docs/how-to/training.md has the numbers.
        raises: DreamBoothError if the loss does not fall
        """
        smoothed_losses = [
            self.first_loss,
            *_average_neighbouring_losses([point.loss for point in self.points]),
        ]
        lowest_index = min(range(len(smoothed_losses)), key=smoothed_losses.__getitem__)
        if smoothed_losses[lowest_index] > self.first_loss * (1 - _LEAST_FALL):
            raise DreamBoothError(
                f"no rate of the ramp makes the loss fall by a hundredth (first "
                f"{self.first_loss:.4g}, lowest {smoothed_losses[lowest_index]:.4g}); try more "
                "--steps, or another --lowest and --highest"
            )
        loss_falls = [smoothed_losses[i] - smoothed_losses[i + 1] for i in range(lowest_index)]
        steepest_index = loss_falls.index(max(loss_falls))
        return math.sqrt(self.points[steepest_index].rate * self.points[lowest_index - 1].rate)

    def as_json(self) -> dict[str, Any]:
        """All of it, for files."""
        return asdict(self)


def draw_curve(curve: RateCurve, path: Path) -> None:
    """A PNG of the loss along the rates, with the suggestion where there is one."""
    from matplotlib.figure import Figure  # noqa: PLC0415  comes with the extra alone

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.rate for p in curve.points], [p.loss for p in curve.points], marker=".")
    axes.axhline(curve.first_loss, color="0.7", linestyle=":", label="before the first step")
    # What ran away would press the rest flat.
    axes.set(xscale="log", xlabel="train.lr", ylabel="loss on fixed noise",
             ylim=(None, 1.3 * curve.first_loss))  # fmt: skip
    with suppress(DreamBoothError):
        suggested_rate = curve.suggest_rate()
        axes.axvline(suggested_rate, color="tab:green", label=f"suggested: {suggested_rate:.1e}")
    axes.legend()
    figure.savefig(path, format="png")


def _average_neighbouring_losses(losses: list[float]) -> list[float]:
    """Means of three neighbours; of two at both ends."""
    return [
        sum(neighbour_losses) / len(neighbour_losses)
        for i in range(len(losses))
        if (neighbour_losses := losses[max(0, i - 1) : i + 2])
    ]


def _make_ramp_config(config: Config) -> Config:
    """One process, without class images, in float32 where gradients would need scaling."""
    precision = "32" if config.train.precision == "16-mixed" else config.train.precision
    prior_preservation_kind = "images" if config.prior.kind == "images" else "output"
    config_overrides = {
        "train": {"strategy": "ddp", "precision": precision, "compile": "none", "ema_decay": None},
        "prior": {"kind": prior_preservation_kind, "count": 0},
        "validation": {"timesteps": 4, "bins": 1, "held_out": 0, "class_images": 0},
    }
    overridden_sections = {
        name: getattr(config, name).model_copy(update=update)
        for name, update in config_overrides.items()
    }
    return config.model_copy(update=overridden_sections)


class LearningRateRangeTest:
    """A training in this process, without Ray, whose rate grows with each step."""

    def __init__(self, config: Config, directory: Path, device: str = "auto") -> None:
        """directory: of the base model; raises ConfigError, DataError"""
        refuse_prodigy_range_test(config)
        self._config = config = _make_ramp_config(config)
        self._device = resolve_device(device)
        components = load_components(directory)
        apply_train_method(config, components, quantizes=True)
        cast_untrainable_encoders(components, config.train.precision)
        encoder_networks = (components.vae, *components.text_encoders.values())
        for encoder_network in encoder_networks:
            encoder_network.to(self._device)
        photographs_by_subject = [
            read_photographs_for_subject_config(config, s) for s in config.all_subjects
        ]
        self._dataset = TrainingDataset(config, components, photographs_by_subject, None, (0, 1))
        self._dataset.accumulate = config.count_accumulation_parts(1)
        all_photographs = [
            p for subject_photographs in photographs_by_subject for p in subject_photographs
        ]
        self._examples = ValidationSet(config, components, all_photographs, None)
        for encoder_network in encoder_networks:
            encoder_network.to("cpu")
        self._module = DreamBoothModule(config, components).to(self._device)
        self._optimizer = make_optimizer(config, self._module)

    def run(self, rates: tuple[float, float], num_steps: int) -> RateCurve:
        """Train `num_steps` steps at rates from the first to the second, each the same factor up.

        The loss is measured after one step in three, until it has run away.
        """
        lowest_rate, highest_rate = rates
        rate_growth_factor = (highest_rate / lowest_rate) ** (1 / (num_steps - 1))
        torch.manual_seed(self._config.seed)
        initial_loss, rate_points = self._measure_loss(), list[RatePoint]()
        for step in range(num_steps):
            rate = lowest_rate * rate_growth_factor**step
            self._take_step(step, rate)
            if (step + 1) % 3 == 0:
                rate_points.append(RatePoint(rate, self._measure_loss()))
                if not rate_points[-1].loss < _RUNAWAY * initial_loss:  # or it is no number
                    break
        return RateCurve(initial_loss, tuple(p for p in rate_points if math.isfinite(p.loss)))

    def _take_step(self, step: int, rate: float) -> None:
        for param_group in self._optimizer.param_groups:
            base_rate = param_group.setdefault("ramp_base", param_group["lr"])
            param_group["lr"] = base_rate * rate / self._config.train.lr
        num_accumulation_parts = self._dataset.accumulate
        for accumulation_index in range(num_accumulation_parts):
            batch = self._move_batch_to_device(self._dataset.make_batch(step, accumulation_index))
            loss, _ = self._module.compute_loss(batch)
            torch.autograd.backward(loss / num_accumulation_parts)
        trained_weights = [
            w for param_group in self._optimizer.param_groups for w in param_group["params"]
        ]
        torch.nn.utils.clip_grad_norm_(trained_weights, self._config.train.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _measure_loss(self) -> float:
        """Mean over the fixed examples."""
        training_modules = [m for m in self._module.modules() if m.training]
        self._module.eval()
        validation_batches = self._examples.make_all_batches()
        prediction_errors = torch.cat(
            [self._module.compute_errors(self._move_batch_to_device(b)) for b in validation_batches]
        )
        for training_module in training_modules:
            training_module.training = True
        return float(prediction_errors[: self._examples.num_examples].mean())

    def _move_batch_to_device(self, batch: Batch) -> Batch:
        moved_batch: Batch = self._module.transfer_batch_to_device(batch, self._device, 0)
        return moved_batch
