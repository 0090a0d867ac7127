"""What training sees, prepared once: cached latents and captions, addressed by step.

Legend: F orientations (as is, mirrored), C latent channels, h, w latent sides, B rows of one
forward (photographs first, then class images).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.data_sampler import group_rows_by_shape
from dreambooth_ray.data.output_preservation_captions import list_preservation_captions
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.objective import noise
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.caption_embeddings import (
    CaptionEmbeddings,
    PreservationCaptionEmbeddings,
)
from dreambooth_ray.training.image_pools import (
    CachedImage,
    PriorPool,
    choose_step_resolution,
    encode_photographs,
)


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
        with_flips = config.train.flip
        self._photographs = [
            encode_photographs(components, subject_photographs, with_flips, subject_index)
            for subject_index, subject_photographs in enumerate(photographs)
        ]
        num_held_out_priors = config.prior.num_images - config.num_class_images
        self._priors = (
            PriorPool(
                config,
                priors,
                priors.count - num_held_out_priors,
                components.latent_factor,
                self._find_latent_shape,
            )
            if priors
            else None
        )
        captions = [
            c
            for subject_photographs in photographs
            for photograph in subject_photographs
            for c in photograph.captions
        ]
        self._preserved_choices = self._map_preservation_captions(photographs)
        captions_to_preserve = [
            c
            for preservation_captions in self._preserved_choices.values()
            for c in preservation_captions
        ]
        self._captions = CaptionEmbeddings(
            components, ["", *captions, *captions_to_preserve, *(priors.captions if priors else [])]
        )
        self._preserved = (
            PreservationCaptionEmbeddings(components, self._captions, captions_to_preserve)
            if captions_to_preserve
            else None
        )
        self._background = (
            PreservationCaptionEmbeddings(components, self._captions, ["", *captions])
            if config.train.has_background_output_preservation
            else None
        )

    def _map_preservation_captions(
        self, photographs: list[list[Photograph]]
    ) -> dict[tuple[int, str], tuple[str, ...]]:
        """By subject and caption, the captions under which the base model's output is kept."""
        if not self._config.prior.keeps_output:
            return {}
        return {
            (index, caption): list_preservation_captions(self._config, subject_config, caption)
            for index, subject_config in enumerate(self._config.all_subjects)
            for photograph in photographs[index]
            for caption in photograph.captions
        }

    def __iter__(self) -> Iterator[Batch]:
        training_steps = range(self.start, self._config.train.steps)
        return (
            self.make_batch(step, part)
            for step in training_steps
            for part in range(self.accumulate)
        )

    def make_batch(self, step: int, part: int = 0) -> Batch:
        """A part of the batch of a step: a pure function of both.

        Rows of further shapes are in batches of their own, `others` of the one that is returned.
        """
        batch_size = self._config.train.batch_size
        first_position = step * batch_size
        latent_shapes = [(0, 0)] * batch_size
        if not self._config.train.has_one_shape:
            latent_shapes = [
                self._find_latent_shape(position)
                for position in range(first_position, first_position + batch_size)
            ]
        row_groups_by_shape = group_rows_by_shape(
            latent_shapes, *self._rank_and_world_size, self.accumulate, part
        )
        batch, *other_shape_batches = (
            self._make_shape_batch(step, part, [first_position + row for row in rows])
            for rows in row_groups_by_shape
        )
        batch.others = other_shape_batches
        return batch

    def _make_shape_batch(self, step: int, part: int, positions: list[int]) -> Batch:
        """The rows of one forward."""
        batch_size = self._config.train.batch_size
        latents, row_captions, sample_keys, image_frames, masks = (
            [],
            [],
            [],
            [],
            list[Tensor | None](),
        )
        captions_to_preserve: list[str] = []
        for class_offset in (0, batch_size) if self._priors else (0,):
            for position in positions:
                # A sample's key is its index in the global batch, never a worker's rank.
                sample_key = class_offset + position - step * batch_size
                image = (
                    self._get_prior(position) if class_offset else self._get_photograph(position)
                )
                latents.append(self._sample_latents(image.latents, step, sample_key))
                row_captions.append(self._choose_caption(image.captions, step, sample_key))
                sample_keys.append(sample_key)
                image_frames.append(image.frame)
                masks.append(self._choose_mask(image, step, sample_key))
                if self._preserved and not class_offset:
                    captions_to_preserve.append(
                        self._choose_preservation_caption(
                            position, image.captions, step, sample_key
                        )
                    )
        tokens, conditioning = self._captions.look_up(row_captions)
        return Batch(
            latents=torch.stack(latents),
            noise=self._sample_noise(step, sample_keys, tuple(latents[0].shape)),
            times=self._process.sample_times(
                self._config.loss, self._config.seed, step, sample_keys
            ),
            tokens=tokens,
            conditioning=conditioning,
            frames=torch.tensor(image_frames),
            num_photographs=len(positions),
            step=step,
            ends_step=part == self.accumulate - 1,
            starts_step=part == 0,
            preserved=self._preserved.look_up(captions_to_preserve) if self._preserved else None,
            masks=self._join_masks(masks, latents[0]),
            base_conditioning=self._look_up_base_conditioning(row_captions[: len(positions)]),
        )

    def _choose_preservation_caption(
        self, position: int, captions: tuple[str, ...], step: int, key: int
    ) -> str:
        """What goes with a photograph: its caption, a dropped one too, less the identifier."""
        caption = self._choose_one_caption(captions, "caption", step, key)
        preservation_captions = self._preserved_choices[position % len(self._photographs), caption]
        return self._choose_one_caption(preservation_captions, "preserved caption", step, key)

    @property
    def example_conditioning(self) -> Conditioning:
        """Of one caption, where text encoders are frozen; all of them have its shape."""
        conditioning = self._captions.conditioning
        assert conditioning is not None
        return conditioning.select([0])

    def describe_inputs(self, step: int) -> list[str]:
        """What the global batch of a step (from 0) is made of, in words."""
        batch_size, seed = self._config.train.batch_size, self._config.seed
        positions = range(step * batch_size, (step + 1) * batch_size)
        input_descriptions = []
        for position in positions:
            position_in_subject, subject_index = divmod(position, len(self._photographs))
            index = self._photographs[subject_index].choose_index(seed, position_in_subject)
            input_descriptions.append(f"photograph {index} of subject {subject_index}")
        if self._priors is not None:
            input_descriptions += [
                f"class image {self._priors.choose_index(seed, p)}" for p in positions
            ]
        return input_descriptions

    def _get_photograph(self, position: int) -> CachedImage:
        """Subjects take turns; each has its own shuffles."""
        position_in_subject, subject_index = divmod(position, len(self._photographs))
        photograph_pool, train_config = self._photographs[subject_index], self._config.train
        resolution_index = choose_step_resolution(self._config, position // train_config.batch_size)
        return photograph_pool.get_image(
            photograph_pool.choose_index(self._config.seed, position_in_subject), resolution_index
        )

    def _find_latent_shape(self, position: int) -> tuple[int, int]:
        """Latent height and width of the photograph at a position, and of its class image."""
        latent_height, latent_width = self._get_photograph(position).latents.shape[-2:]
        return latent_height, latent_width

    def _get_prior(self, position: int) -> CachedImage:
        assert self._priors is not None
        return self._priors.get_image(self._priors.choose_index(self._config.seed, position))

    def _sample_latents(self, cached: Tensor, step: int, key: int) -> Tensor:
        """Sample from a cached posterior, (F, 2, C, h, w) to (C, h, w)."""
        seed = self._config.seed
        posterior_mean, posterior_std = cached[self._choose_orientation(cached, step, key)].unbind()
        return (
            posterior_mean
            + posterior_std
            * noise.sample_normal(seed, "posterior", step, [key], tuple(posterior_mean.shape))[0]
        )

    def _choose_orientation(self, views: Tensor, step: int, key: int) -> int:
        """As it is, or mirrored. views: (F, ...)"""
        return int(noise.sample_integers(self._config.seed, "flip", step, [key], len(views)))

    def _look_up_base_conditioning(self, captions: list[str]) -> Conditioning | None:
        """Under which the base model's output is kept outside the masks, if it is."""
        return self._background.look_up(captions).base_conditioning if self._background else None

    def _choose_mask(self, image: CachedImage, step: int, key: int) -> Tensor | None:
        """(1, h, w), mirrored where the latents are."""
        return (
            None
            if image.mask is None
            else image.mask[self._choose_orientation(image.mask, step, key)]
        )

    def _join_masks(self, masks: list[Tensor | None], latents: Tensor) -> Tensor | None:
        """(B, 1, h, w); 1 everywhere for an image without mask. latents: (C, h, w) of one row"""
        if self._config.train.mask_background is None:
            return None
        all_ones_mask = torch.ones_like(latents[:1])
        return torch.stack([all_ones_mask if of_image is None else of_image for of_image in masks])

    def _choose_caption(self, captions: tuple[str, ...], step: int, key: int) -> str:
        seed, dropout_rate = self._config.seed, self._config.loss.caption_dropout
        if (
            dropout_rate
            and float(noise.sample_uniform(seed, "caption dropout", step, [key])) < dropout_rate
        ):
            return ""
        return self._choose_one_caption(captions, "caption", step, key)

    def _choose_one_caption(
        self, captions: tuple[str, ...], purpose: str, step: int, key: int
    ) -> str:
        if len(captions) == 1:
            return captions[0]
        seed = self._config.seed
        return captions[int(noise.sample_integers(seed, purpose, step, [key], len(captions)))]

    def _sample_noise(self, step: int, keys: list[int], shape: tuple[int, ...]) -> Tensor:
        """(B, C, h, w): normal, with a shift for each channel where loss.noise_offset says so.

        Source: N. Guttenberg 2023, "Diffusion with offset noise".
        """
        seed, noise_offset = self._config.seed, self._config.loss.noise_offset
        sampled_noise = noise.sample_normal(seed, "noise", step, keys, shape)
        if noise_offset:
            sampled_noise += noise_offset * noise.sample_normal(
                seed, "noise offset", step, keys, (shape[0], 1, 1)
            )
        return sampled_noise
