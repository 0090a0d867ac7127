"""What training sees, prepared once: cached latents and captions, addressed by step.

Legend: N images, F orientations (as is, mirrored), C latent channels, h, w latent
sides, B batch of one worker (photographs first, then class images).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.preserved_captions import preserved_captions
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.sampler import batch_positions, growing_set_index, shuffled_index
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.vae_posterior import encode_posterior
from dreambooth_ray.objective import noise
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.caption_embeddings import CaptionEmbeddings, PreservedEmbeddings

# Purposes of the shuffles; a further subject's photographs have _NEXT_SUBJECT added.
_PHOTOGRAPHS, _PRIORS, _NEXT_SUBJECT = 21, 22, 100


class CachedImage(NamedTuple):
    """One image: latents (F, 2, C, h, w), the captions it may get, and what of it is seen."""

    latents: Tensor
    captions: tuple[str, ...]
    frame: ImageFrame


@dataclass(frozen=True)
class PhotographPool:
    """One subject's cached photographs, each with the captions it may get.

    latents: (N, F, 2, C, h, w), scaled mean and std; subject_index: which subject, from 0
    """

    latents: Tensor
    captions: list[tuple[str, ...]]
    frames: list[ImageFrame]
    subject_index: int = 0

    def choose_index(self, seed: int, position: int) -> int:
        """Which image comes at a position of the endless sequence: shuffled each time round."""
        purpose = _PHOTOGRAPHS + _NEXT_SUBJECT * self.subject_index
        return shuffled_index(seed, purpose, position, len(self.latents))

    def get_image(self, index: int) -> CachedImage:
        """Image `index`."""
        return CachedImage(self.latents[index], self.captions[index], self.frames[index])


class PriorPool:
    """Class images, each read, and if need be waited for, when a step needs it."""

    def __init__(
        self, priors: PriorSet, count: int, num_positions: int, flip: bool, side_px: int
    ) -> None:
        """count: how many of them, the first, are trained on; num_positions: of the whole run."""
        self._priors, self._views = priors, 2 if flip else 1
        self._frame = ImageFrame.of_whole(side_px, side_px)
        self._count, self._num_positions = count, num_positions

    def choose_index(self, seed: int, position: int) -> int:
        """Which class image comes at a position: each as late as it can, in order of generation."""
        return growing_set_index(seed, _PRIORS, position, self._count, self._num_positions)

    def get_image(self, index: int) -> CachedImage:
        """Class image `index`, waited for if it is not there yet."""
        caption = self._priors.captions[self._priors.caption_index(index)]
        latents = self._priors.load_posterior(index)[: self._views]
        return CachedImage(latents, (caption,), self._frame)


def encode_photographs(
    components: Components, photographs: list[Photograph], flip: bool, subject_index: int = 0
) -> PhotographPool:
    """Encode photographs through the frozen VAE, each once for each orientation."""
    rows = [encode_posterior(components, p.image, flip) for p in photographs]
    frames = [ImageFrame(*p.frame) for p in photographs]
    captions = [p.captions for p in photographs]
    return PhotographPool(torch.stack(rows), captions, frames, subject_index)


class TrainingDataset(IterableDataset[Batch]):
    """Yields the batches of steps start..total-1 for one worker, each in `accumulate` parts."""

    def __init__(
        self,
        config: Config,
        components: Components,
        photographs: list[list[Photograph]],
        priors: PriorSet | None,
        rank_and_world_size: tuple[int, int],
    ) -> None:
        """photographs: by subject; rank_and_world_size: (rank, world size)."""
        self._config, self._rank_and_world_size = config, rank_and_world_size
        self._process = components.functions.forward_process(components)
        self.start, self.accumulate = 0, config.train.accumulate
        flip = config.train.flip
        self._photographs = [
            encode_photographs(components, photograph, flip, index)
            for index, photograph in enumerate(photographs)
        ]
        num_held_out = config.prior.num_images - config.num_class_images
        num_positions = config.train.steps * config.train.batch_size
        self._priors = (
            PriorPool(
                priors, priors.count - num_held_out, num_positions, flip, config.train.resolution
            )
            if priors
            else None
        )
        captions = [
            c for subject in photographs for photograph in subject for c in photograph.captions
        ]
        self._preserved_choices = self._list_preserved(photographs)
        preserved = [c for choices in self._preserved_choices.values() for c in choices]
        self._captions = CaptionEmbeddings(
            components, ["", *captions, *preserved, *(priors.captions if priors else [])]
        )
        self._preserved = (
            PreservedEmbeddings(components, self._captions, preserved) if preserved else None
        )

    def _list_preserved(
        self, photographs: list[list[Photograph]]
    ) -> dict[tuple[int, str], tuple[str, ...]]:
        """By subject and caption, the captions under which the base model's output is kept."""
        if not self._config.prior.keeps_output:
            return {}
        return {
            (index, caption): preserved_captions(self._config, subject, caption)
            for index, subject in enumerate(self._config.all_subjects)
            for photograph in photographs[index]
            for caption in photograph.captions
        }

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start, self._config.train.steps)
        return (self.make_batch(step, part) for step in steps for part in range(self.accumulate))

    def make_batch(self, step: int, part: int = 0) -> Batch:
        """A part of the batch of a step: a pure function of both."""
        size = self._config.train.batch_size
        share = batch_positions(step, size, *self._rank_and_world_size)
        part_size = len(share) // self.accumulate
        positions = share[part * part_size : (part + 1) * part_size]
        latents, captions, keys, frames = [], [], [], []
        preserved: list[str] = []
        for offset in (0, size) if self._priors else (0,):
            for position in positions:
                # A sample's key is its index in the global batch, never a worker's rank.
                key = offset + position - step * size
                image = self._get_prior(position) if offset else self._get_photograph(position)
                latents.append(self._sample_latents(image.latents, step, key))
                captions.append(self._choose_caption(image.captions, step, key))
                keys.append(key)
                frames.append(image.frame)
                if self._preserved and not offset:
                    preserved.append(self._choose_preserved(position, image.captions, step, key))
        tokens, conditioning = self._captions.look_up(captions)
        return Batch(
            latents=torch.stack(latents),
            noise=self._sample_noise(step, keys, tuple(latents[0].shape)),
            times=self._process.sample_times(self._config.loss, self._config.seed, step, keys),
            tokens=tokens,
            conditioning=conditioning,
            frames=torch.tensor(frames),
            num_photographs=len(positions),
            step=step,
            ends_step=part == self.accumulate - 1,
            starts_step=part == 0,
            preserved=self._preserved.look_up(preserved) if self._preserved else None,
        )

    def _choose_preserved(
        self, position: int, captions: tuple[str, ...], step: int, key: int
    ) -> str:
        """What goes with a photograph: its caption, a dropped one too, less the identifier."""
        caption = self._choose_one(captions, "caption", step, key)
        choices = self._preserved_choices[position % len(self._photographs), caption]
        return self._choose_one(choices, "preserved caption", step, key)

    @property
    def example_conditioning(self) -> Conditioning:
        """Of one caption, where text encoders are frozen; all of them have its shape."""
        conditioning = self._captions.conditioning
        assert conditioning is not None
        return conditioning.select([0])

    def describe_inputs(self, step: int) -> list[str]:
        """What the global batch of a step (from 0) is made of, in words."""
        size, seed = self._config.train.batch_size, self._config.seed
        positions = range(step * size, (step + 1) * size)
        descriptions = []
        for position in positions:
            turn, subject = divmod(position, len(self._photographs))
            index = self._photographs[subject].choose_index(seed, turn)
            descriptions.append(f"photograph {index} of subject {subject}")
        if self._priors is not None:
            descriptions += [f"class image {self._priors.choose_index(seed, p)}" for p in positions]
        return descriptions

    def _get_photograph(self, position: int) -> CachedImage:
        """Subjects take turns; each has its own shuffles."""
        turn, subject = divmod(position, len(self._photographs))
        pool = self._photographs[subject]
        return pool.get_image(pool.choose_index(self._config.seed, turn))

    def _get_prior(self, position: int) -> CachedImage:
        assert self._priors is not None
        return self._priors.get_image(self._priors.choose_index(self._config.seed, position))

    def _sample_latents(self, cached: Tensor, step: int, key: int) -> Tensor:
        """Sample from a cached posterior, (F, 2, C, h, w) to (C, h, w)."""
        seed = self._config.seed
        view = int(noise.integers(seed, "flip", step, [key], len(cached)))
        mean, std = cached[view].unbind()
        return mean + std * noise.normal(seed, "posterior", step, [key], tuple(mean.shape))[0]

    def _choose_caption(self, captions: tuple[str, ...], step: int, key: int) -> str:
        seed, dropout = self._config.seed, self._config.loss.caption_dropout
        if dropout and float(noise.uniform(seed, "caption dropout", step, [key])) < dropout:
            return ""
        return self._choose_one(captions, "caption", step, key)

    def _choose_one(self, captions: tuple[str, ...], purpose: str, step: int, key: int) -> str:
        if len(captions) == 1:
            return captions[0]
        seed = self._config.seed
        return captions[int(noise.integers(seed, purpose, step, [key], len(captions)))]

    def _sample_noise(self, step: int, keys: list[int], shape: tuple[int, ...]) -> Tensor:
        """(B, C, h, w): normal, with a shift for each channel where loss.noise_offset says so.

        Source: N. Guttenberg 2023, "Diffusion with offset noise".
        """
        seed, offset = self._config.seed, self._config.loss.noise_offset
        sampled_noise = noise.normal(seed, "noise", step, keys, shape)
        if offset:
            sampled_noise += offset * noise.normal(
                seed, "noise offset", step, keys, (shape[0], 1, 1)
            )
        return sampled_noise
