"""Losses on fixed images, noise and timesteps, and what follows from them.

Legend: M examples (each an image at a noise level), B of them in one forward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.image_shapes import ImageShape
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.vae_posterior import encode_posterior
from dreambooth_ray.objective import loss as objective
from dreambooth_ray.objective import noise
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.caption_embeddings import CaptionEmbeddings
from dreambooth_ray.training.early_stopping import VALIDATION_LOSS, find_stop_step
from dreambooth_ray.training.module import DreamBoothModule

_BATCH = 8


class ValidationSet:
    """Fixed examples: every image kept for validation, at every noise level, with its noise.

    They are the same at every validation, whatever the number of workers.
    """

    def __init__(
        self,
        config: Config,
        components: Components,
        photographs: list[Photograph],
        priors: PriorSet | None,
    ) -> None:
        """priors: the whole set; its last images are those kept."""
        self._config, self._priors = config, priors
        validation_config = config.validation
        self._process = components.functions.forward_process(components)
        self._times = self._process.times_at_fractions(
            [(i + 0.5) / validation_config.timesteps for i in range(validation_config.timesteps)]
        )
        self._means = [encode_posterior(components, p.image, False)[0, 0] for p in photographs]
        self._frames = [ImageFrame(*p.size_conditioning) for p in photographs]
        square_shape = ImageShape(config.train.side_px, config.train.side_px)
        self._class_shapes = (priors.shapes if priors else ()) or (square_shape,)
        self._image_captions = [p.captions[0] for p in photographs]
        self._captions = CaptionEmbeddings(
            components, self._image_captions + (priors.captions if priors else [])
        )
        self._num_photographs = len(photographs)
        self._batches: list[Batch] = []
        self._examples: list[tuple[int, float]] = []
        # The example of each row of all batches.
        self._rows: list[int] = []

    def make_all_batches(self) -> list[Batch]:
        """All examples, B of one shape at a time; a shape's last batch is filled up with its last
        example.
        """
        if not self._batches:
            self._add_priors()
            self._examples = [(p, t) for p in range(len(self._means)) for t in self._times]
            self.num_examples = len(self._examples)
            example_indices_by_shape: dict[torch.Size, list[int]] = {}
            for example_index, (image_index, _) in enumerate(self._examples):
                latents_shape = self._means[image_index].shape
                example_indices_by_shape.setdefault(latents_shape, []).append(example_index)
            for example_indices in example_indices_by_shape.values():
                while len(example_indices) % _BATCH:
                    example_indices.append(example_indices[-1])
                self._rows += example_indices
                for start in range(0, len(example_indices), _BATCH):
                    self._batches.append(self._make_batch(example_indices[start : start + _BATCH]))
        return self._batches

    def _add_priors(self) -> None:
        """Not before the first validation: they may still be being generated."""
        if self._priors is not None:
            num_priors = self._priors.count
            for index in range(num_priors - self._config.validation.class_images, num_priors):
                self._means.append(self._priors.load_posterior(index)[0, 0])
                image_shape = self._class_shapes[index % len(self._class_shapes)]
                self._frames.append(
                    ImageFrame.of_whole_image(image_shape.height, image_shape.width)
                )
                self._image_captions.append(
                    self._priors.captions[self._priors.caption_index(index)]
                )

    def _make_batch(self, indices: list[int]) -> Batch:
        examples = [self._examples[index] for index in indices]
        latents = torch.stack([self._means[image_index] for image_index, _ in examples])
        tokens, conditioning = self._captions.look_up(
            [self._image_captions[image_index] for image_index, _ in examples]
        )
        sampled_noise = noise.sample_normal(
            self._config.seed, "validation", 0, indices, tuple(latents.shape[1:])
        )
        return Batch(
            latents=latents,
            noise=sampled_noise,
            times=self._process.to_tensor([time for _, time in examples]),
            tokens=tokens,
            conditioning=conditioning,
            frames=torch.tensor([self._frames[image_index] for image_index, _ in examples]),
            num_photographs=sum(image_index < self._num_photographs for image_index, _ in examples),
            step=0,
        )

    def select_example_errors(self, errors: Tensor) -> Tensor:
        """(M,) errors of the examples in order, of those of all batches' rows."""
        return errors[[self._rows.index(example) for example in range(self.num_examples)]]

    def average_errors_by_noise_level(self, errors: Tensor) -> dict[str, float]:
        """Losses of both halves, altogether and by range of noise level. errors: (M,) float32."""
        num_photograph_examples = self._num_photographs * len(self._times)
        noise_level_indices = torch.arange(self.num_examples) % len(self._times)
        num_bins = self._config.validation.bins
        bin_indices = noise_level_indices // (len(self._times) // num_bins)
        instance_loss, prior_loss = (
            float(x)
            for x in objective.mean_instance_and_prior_errors(errors, num_photograph_examples)
        )
        total_loss = objective.prior_preserving_loss(
            instance_loss, [prior_loss], [self._config.prior.weight]
        )
        losses = {VALIDATION_LOSS: total_loss, "val_instance_loss": instance_loss}
        example_slices = {"instance": slice(num_photograph_examples)}
        if num_photograph_examples < self.num_examples:
            losses["val_prior_loss"] = prior_loss
            example_slices["prior"] = slice(num_photograph_examples, None)
        for name, example_slice in example_slices.items():
            for bin_index in range(num_bins):
                bin_errors = errors[example_slice][bin_indices[example_slice] == bin_index]
                losses[f"val_{name}_loss_bin{bin_index}"] = float(bin_errors.mean())
        return losses


def compute_validation_losses(
    trainer: pl.Trainer,
    module: DreamBoothModule,
    side_work: SideWork,
    validation_set: ValidationSet,
) -> dict[str, float] | None:
    """Errors of every example with the weights that the bundle would get; same on all workers.

    Workers share the batches, and take equally many, since sharded ones must move in step. None on
    all of them if one worker can't read its examples, or can't compute one.
    """
    batches = side_work.run("validation", validation_set.make_all_batches, None)
    world_size, rank = trainer.world_size, trainer.global_rank
    if not _all_workers_can(trainer, module, batches is not None, side_work) or batches is None:
        return None
    all_errors, has_computed_all = list[Tensor](), True
    with _evaluation_mode(trainer, module):
        for start in range(0, len(batches), world_size):
            batch = batches[min(start + rank, len(batches) - 1)]
            errors = side_work.run(
                "validation", partial(_compute_errors, trainer, module, batch), None
            )
            if errors is None:
                # The others wait for this worker's errors, whatever they are.
                errors, has_computed_all = torch.zeros(_BATCH, device=module.device), False
            gathered_errors = cast(Tensor, module.all_gather(errors))
            all_errors.extend(gathered_errors.reshape(world_size, -1).cpu())
    if not _all_workers_can(trainer, module, has_computed_all, side_work):
        return None
    errors = validation_set.select_example_errors(torch.cat(all_errors))
    return validation_set.average_errors_by_noise_level(errors)


def _compute_errors(trainer: pl.Trainer, module: DreamBoothModule, batch: Batch) -> Tensor:
    """(B,) errors."""
    return module.compute_errors(trainer.strategy.batch_to_device(batch, module.device))


def _all_workers_can(
    trainer: pl.Trainer, module: DreamBoothModule, this_worker_can: bool, side_work: SideWork
) -> bool:
    """Whether every worker can go on with a validation; a collective call."""
    if trainer.world_size == 1:
        return this_worker_can
    worker_flags = cast(
        Tensor, module.all_gather(torch.tensor(this_worker_can, device=module.device))
    )
    if this_worker_can and not bool(worker_flags.all()):
        side_work.note_failure("validation", RuntimeError("it failed on another worker"))
    return bool(worker_flags.all())


@contextmanager
def _evaluation_mode(trainer: pl.Trainer, module: DreamBoothModule) -> Iterator[None]:
    """Averaged weights, no dropout, no gradients, the configured precision; then as before."""
    modules_in_training_mode = [m for m in module.modules() if m.training]
    module.eval()
    with (
        torch.no_grad(),
        module.using_averaged_weights(),
        trainer.precision_plugin.forward_context(),
    ):
        yield
    for module_in_training_mode in modules_in_training_mode:
        module_in_training_mode.training = True


class Validation:
    """Computes validation losses every few steps and after the last."""

    def __init__(
        self, config: Config, validation_set: ValidationSet, losses: list[tuple[int, float]]
    ) -> None:
        """losses: of the validations up to the step that training goes on from."""
        self._config, self._validation_set, self._losses = config, validation_set, list(losses)

    def is_due(self, step: int) -> bool:
        """Whether to validate after this step."""
        return step % self._config.validation.every == 0 or step == self._config.train.steps

    def validate(
        self, step: int, compute_losses: Callable[[ValidationSet], dict[str, float] | None]
    ) -> dict[str, float]:
        """The step's validation metrics, none if it failed: then `compute_losses` returns None."""
        losses = compute_losses(self._validation_set)
        if losses is None:
            return {}
        self._losses.append((step, losses[VALIDATION_LOSS]))
        return losses

    @property
    def has_stalled(self) -> bool:
        """Whether the run has got no better for as long as the configuration bears."""
        return find_stop_step(self._losses, self._config.validation) is not None
