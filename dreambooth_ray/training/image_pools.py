"""Photographs and class images as training sees them: cached latents, chosen by position.

Legend: F orientations (as is, mirrored), C latent channels, h, w latent sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.data_sampler import (
    ShapeOccurrenceCounter,
    growing_set_index,
    shuffled_index,
)
from dreambooth_ray.data.image_shapes import ImageShape
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.vae_posterior import encode_posterior

# Purposes of the shuffles; a further subject's photographs, and class images of a further shape,
# have _NEXT added.
_PHOTOGRAPHS, _PRIORS, _RESOLUTIONS, _NEXT = 21, 22, 23, 100


def choose_step_resolution(config: Config, step: int) -> int:
    """Which of train.resolution, from the smallest, a step takes: shuffled each time round."""
    return shuffled_index(config.seed, _RESOLUTIONS, step, len(config.train.sides_px))


class CachedImage(NamedTuple):
    """One image: latents (F, 2, C, h, w), the captions it may get, and what of it is seen.

    mask: (F, 1, h, w), where it has one
    """

    latents: Tensor
    captions: tuple[str, ...]
    frame: ImageFrame
    mask: Tensor | None = None


@dataclass(frozen=True)
class PhotographPool:
    """One subject's cached photographs, each at every resolution, the smallest first.

    subject_index: which subject, from 0
    """

    images: list[tuple[CachedImage, ...]]
    subject_index: int = 0

    def choose_index(self, seed: int, position: int) -> int:
        """Which image comes at a position of the endless sequence: shuffled each time round."""
        shuffle_purpose = _PHOTOGRAPHS + _NEXT * self.subject_index
        return shuffled_index(seed, shuffle_purpose, position, len(self.images))

    def get_image(self, index: int, resolution: int = 0) -> CachedImage:
        """Image `index`; resolution: which one, from the smallest"""
        return self.images[index][resolution]


def encode_photographs(
    components: Components,
    photographs: list[Photograph],
    flip: bool,
    subject_index: int = 0,
) -> PhotographPool:
    """Encode photographs through the frozen VAE, each once for each orientation and resolution."""
    cached_images = []
    for photograph in photographs:
        images_by_resolution = []
        for resized_photograph in photograph.at_all_resolutions:
            latents = encode_posterior(components, resized_photograph.image, flip)
            latent_height, latent_width = latents.shape[-2:]
            mask = (
                None
                if resized_photograph.mask is None
                else scale_mask(resized_photograph.mask, (latent_height, latent_width), flip)
            )
            image_frame = ImageFrame(*resized_photograph.size_conditioning)
            images_by_resolution.append(
                CachedImage(latents, photograph.captions, image_frame, mask)
            )
        cached_images.append(tuple(images_by_resolution))
    return PhotographPool(cached_images, subject_index)


def scale_mask(mask: Image.Image, latent_shape: tuple[int, int], flip: bool) -> Tensor:
    """(F, 1, h, w) float32: the share of each latent's area that is inside a mask.

    latent_shape: (h, w)
    """
    latent_height, latent_width = latent_shape
    resized_mask = mask.convert("F").resize((latent_width, latent_height), Image.Resampling.BOX)
    latent_mask = torch.from_numpy(np.array(resized_mask)).float()[None] / 255
    return torch.stack([latent_mask, latent_mask.flip(2)] if flip else [latent_mask])


class PriorPool:
    """Class images, each read, and if need be waited for, when a step needs it.

    Where they are of several shapes, those of a shape are a sequence of their own.
    """

    def __init__(
        self,
        config: Config,
        priors: PriorSet,
        count: int,
        latent_factor: int,
        find_shape: Callable[[int], tuple[int, int]],
    ) -> None:
        """count: how many of them, the first, are trained on

        latent_factor: pixels that a latent spans each way
        find_shape: of a position, latent height and width of what it is trained beside
        """
        side_px, train_config = config.train.side_px, config.train
        self._priors, self._num_views = priors, 2 if train_config.flip else 1
        self._count, self._num_positions = count, train_config.steps * train_config.batch_size
        self._shapes = priors.shapes or (ImageShape(side_px, side_px),)
        self._find_shape = find_shape
        self._turns: ShapeOccurrenceCounter | None = None
        if len(self._shapes) > 1:
            self._turns = ShapeOccurrenceCounter(find_shape, self._num_positions)
            self._shape_indices = {
                (shape.height // latent_factor, shape.width // latent_factor): index
                for index, shape in enumerate(self._shapes)
            }

    def choose_index(self, seed: int, position: int) -> int:
        """Which class image comes at a position: each as late as it can, in order of generation."""
        if self._turns is None:
            return growing_set_index(seed, _PRIORS, position, self._count, self._num_positions)
        latent_shape = self._find_shape(position)
        shape_index, num_shapes = self._shape_indices[latent_shape], len(self._shapes)
        index_in_shape = growing_set_index(
            seed,
            _PRIORS + _NEXT * shape_index,
            self._turns.count_earlier_same_shape(position),
            len(range(shape_index, self._count, num_shapes)),
            self._turns.totals[latent_shape],
        )
        return shape_index + index_in_shape * num_shapes

    def get_image(self, index: int) -> CachedImage:
        """Class image `index`, waited for if it is not there yet."""
        caption = self._priors.captions[self._priors.caption_index(index)]
        latents = self._priors.load_posterior(index)[: self._num_views]
        image_shape = self._shapes[index % len(self._shapes)]
        return CachedImage(
            latents, (caption,), ImageFrame.of_whole_image(image_shape.height, image_shape.width)
        )
