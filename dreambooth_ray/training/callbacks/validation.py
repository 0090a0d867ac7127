"""Losses on fixed images, noise and timesteps, and what follows from them.

Legend: M questions (each an image at a noise level), B of them in one forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.vae_posterior import encode_posterior
from dreambooth_ray.objective import loss as objective
from dreambooth_ray.objective import noise
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.dataset import Batch, CaptionEmbeddings
from dreambooth_ray.training.early_stopping import VALIDATION_LOSS, stops_at
from dreambooth_ray.training.module import DreamBoothModule

_BATCH = 8


class Probe:
    """The questions: every image kept for validation, at every noise level, with its noise.

    They are the same at every validation, whatever the number of workers.
    """

    def __init__(
        self,
        config: Config,
        parts: Components,
        photographs: list[Photograph],
        priors: PriorSet | None,
    ) -> None:
        """priors: the whole set; its last images are those kept."""
        self._config, self._priors = config, priors
        wanted = config.validation
        total = int(parts.schedule.config.num_train_timesteps)
        self._timesteps = [
            int((i + 0.5) / wanted.timesteps * total) for i in range(wanted.timesteps)
        ]
        self._means = [encode_posterior(parts.vae, p.image, False)[0, 0] for p in photographs]
        self._texts = [p.captions[0] for p in photographs]
        self._captions = CaptionEmbeddings(parts, self._texts + (priors.captions if priors else []))
        self._num_photographs = len(photographs)
        self._batches: list[Batch] = []

    def batches(self) -> list[Batch]:
        """All questions, B at a time; the last batch is filled up with its first question."""
        if not self._batches:
            self._add_priors()
            pairs = [(p, t) for p in range(len(self._means)) for t in self._timesteps]
            self.num_questions = len(pairs)
            while len(pairs) % _BATCH:
                pairs.append(pairs[len(pairs) // _BATCH * _BATCH])
            for first in range(0, len(pairs), _BATCH):
                self._batches.append(self._batch(pairs[first : first + _BATCH], first))
        return self._batches

    def _add_priors(self) -> None:
        """Not before they are wanted: they may still be being drawn."""
        if self._priors is not None:
            count = self._priors.count
            for place in range(count - self._config.validation.class_images, count):
                self._means.append(self._priors.posterior(place)[0, 0])
                self._texts.append(self._priors.captions[self._priors.caption(place)])

    def _batch(self, pairs: list[tuple[int, int]], first: int) -> Batch:
        latents = torch.stack([self._means[image] for image, _ in pairs])
        keys = list(range(first, first + len(pairs)))
        ids, hidden = self._captions.rows([self._texts[image] for image, _ in pairs])
        drawn = noise.normal(self._config.seed, "validation", 0, keys, tuple(latents.shape[1:]))
        return Batch(
            latents=latents,
            noise=drawn,
            timesteps=torch.tensor([timestep for _, timestep in pairs]),
            input_ids=ids,
            is_prior=torch.tensor([image >= self._num_photographs for image, _ in pairs]),
            step=0,
            hidden=hidden,
        )

    def summary(self, errors: Tensor) -> dict[str, float]:
        """Losses of both halves, altogether and by range of noise level. errors: (M,) float32."""
        is_prior = torch.cat([b.is_prior for b in self._batches])[: self.num_questions].cpu()
        level = torch.arange(self.num_questions) % len(self._timesteps)
        bins = self._config.validation.bins
        part = level // (len(self._timesteps) // bins)
        instance, prior = (float(x) for x in objective.halves(errors, is_prior))
        total = objective.prior_preserving(instance, prior, self._config.prior.weight)
        found = {VALIDATION_LOSS: total, "val_instance_loss": instance}
        halves = {"instance": ~is_prior}
        if bool(is_prior.any()):
            found["val_prior_loss"] = prior
            halves["prior"] = is_prior
        for name, chosen in halves.items():
            for k in range(bins):
                found[f"val_{name}_loss_bin{k}"] = float(errors[chosen & (part == k)].mean())
        return found


def evaluate(
    trainer: pl.Trainer, module: DreamBoothModule, probe: Probe, side_work: SideWork
) -> dict[str, float] | None:
    """Answer every question with the weights that the bundle would get; same on all workers.

    Workers share the batches, and take equally many, since sharded ones must move in step. None on
    all of them if one worker can't read its questions, or can't answer one.
    """
    batches = side_work.run("validation", probe.batches, None)
    world, rank = trainer.world_size, trainer.global_rank
    if not _all_can(trainer, module, batches is not None, side_work) or batches is None:
        return None
    answers, can_answer = list[Tensor](), True
    with _answering(trainer, module):
        for first in range(0, len(batches), world):
            own = batches[min(first + rank, len(batches) - 1)]
            errors = side_work.run("validation", partial(_answer, trainer, module, own), None)
            if errors is None:
                # The others wait for this worker's answers, whatever they are.
                errors, can_answer = torch.zeros(_BATCH, device=module.device), False
            gathered = cast(Tensor, module.all_gather(errors))
            answers.extend(gathered.reshape(world, -1).cpu())
    if not _all_can(trainer, module, can_answer, side_work):
        return None
    return probe.summary(torch.cat(answers)[: probe.num_questions])


def _answer(trainer: pl.Trainer, module: DreamBoothModule, batch: Batch) -> Tensor:
    """(B,) errors."""
    return module.errors(trainer.strategy.batch_to_device(batch, module.device))


def _all_can(
    trainer: pl.Trainer, module: DreamBoothModule, this_can: bool, side_work: SideWork
) -> bool:
    """Whether every worker can go on with a validation; a collective call."""
    if trainer.world_size == 1:
        return this_can
    each = cast(Tensor, module.all_gather(torch.tensor(this_can, device=module.device)))
    if this_can and not bool(each.all()):
        side_work.note("validation", RuntimeError("it failed on another worker"))
    return bool(each.all())


@contextmanager
def _answering(trainer: pl.Trainer, module: DreamBoothModule) -> Iterator[None]:
    """Averaged weights, no dropout, no gradients, the configured precision; then as before."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    with torch.no_grad(), module.averaged(), trainer.precision_plugin.forward_context():
        yield
    for part in training:
        part.training = True


class Validation:
    """Asks the probe every few steps and after the last."""

    def __init__(self, config: Config, probe: Probe, losses: list[tuple[int, float]]) -> None:
        """losses: of the validations up to the step that training goes on from."""
        self._config, self._probe, self._losses = config, probe, list(losses)

    def is_due(self, step: int) -> bool:
        """Whether to ask after this step."""
        return step % self._config.validation.every == 0 or step == self._config.train.steps

    def validate(
        self, trainer: pl.Trainer, module: DreamBoothModule, step: int, side_work: SideWork
    ) -> dict[str, float]:
        """Ask; returns the step's validation metrics, none if it failed."""
        values = evaluate(trainer, module, self._probe, side_work)
        if values is None:
            return {}
        self._losses.append((step, values[VALIDATION_LOSS]))
        return values

    @property
    def has_stalled(self) -> bool:
        """Whether the run has got no better for as long as the configuration bears."""
        return stops_at(self._losses, self._config.validation) is not None
