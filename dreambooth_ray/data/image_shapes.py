"""The shapes that photographs are trained in, and what is cut out of a photograph for one.

A bucket is a shape of about a square's area, and of an aspect near the photographs' own: Novel AI
2022, "NovelAI improvements on Stable Diffusion". No photograph is left out for being alone in its
bucket: see `data_sampler.group_rows_by_shape`.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dreambooth_ray.config.training_images import TrainingImagesConfig
from dreambooth_ray.data.saliency import compute_saliency, find_salient_window
from dreambooth_ray.errors import ConfigError, DataError

# The least of a photograph that a cut may keep, and the most that one may be enlarged.
_MIN_KEPT, _MAX_ENLARGED = 0.5, 2.0


class ImageShape(NamedTuple):
    """Sides of an image, pixels."""

    width: int
    height: int

    @property
    def text(self) -> str:
        """As people write it."""
        return f"{self.width}x{self.height}"


class CroppedImage(NamedTuple):
    """An image of one shape, left and top of where it was cut out, after resizing, and its mask."""

    image: Image.Image
    left: int
    top: int
    mask: Image.Image | None = None


@cache
def list_bucket_shapes(side_px: int, step_px: int, max_aspect: float) -> tuple[ImageShape, ...]:
    """All shapes of sides that are multiples of a step, no larger than a square: for each width
    the highest, and the same ones upright and lying; the square is one of them.

    side_px: of the square, a multiple of step_px
    """
    shapes = set()
    for short_px in range(step_px, side_px + 1, step_px):
        long_px = side_px**2 // short_px // step_px * step_px
        if long_px <= max_aspect * short_px:
            shapes |= {ImageShape(short_px, long_px), ImageShape(long_px, short_px)}
    return tuple(sorted(shapes))


def _advise_bucket_step(side_px: int, max_aspect: float) -> str:
    """The largest step that leaves more than the square, in words; "set " if none does."""
    bucket_step_candidates = (
        bucket_step_px
        for bucket_step_px in range(side_px // 2, 7, -1)
        if side_px % bucket_step_px == 0
    )
    bucket_step_px = next(
        (s for s in bucket_step_candidates if len(list_bucket_shapes(side_px, s, max_aspect)) > 1),
        None,
    )
    return (
        "raise that aspect, or set "
        if bucket_step_px is None
        else f"take {bucket_step_px} as step, or "
    )


@dataclass(frozen=True)
class ShapeRule:
    """Which shapes photographs get, and what of them is cut out, as `train` configures it."""

    train: TrainingImagesConfig

    @classmethod
    def make_square_rule(cls, side_px: int) -> "ShapeRule":
        """The middle square of a photograph."""
        return cls(TrainingImagesConfig(resolution=side_px))

    def choose_shape_per_resolution(
        self, size_px: tuple[int, int], name: str
    ) -> tuple[ImageShape, ...]:
        """The shape of a photograph at each resolution, the smallest first.

        size_px: its width and height; name: for an error
        raises: DataError where a bucket would show less than half of it, or it is far too small;
            ConfigError where there is one bucket
        """
        train = self.train
        if not train.buckets:
            return tuple(ImageShape(side, side) for side in train.sides_px)
        return tuple(self._choose_bucket(side, size_px, name) for side in train.sides_px)

    def _choose_bucket(self, side_px: int, size_px: tuple[int, int], name: str) -> ImageShape:
        """The one of the nearest aspect; of two as near, the larger."""
        train = self.train
        shapes = list_bucket_shapes(side_px, train.bucket_step_px, train.bucket_max_aspect)
        if len(shapes) == 1:
            raise ConfigError(
                f"train.bucket_step_px={train.bucket_step_px} with train.bucket_max_aspect="
                f"{train.bucket_max_aspect:g} leaves no bucket but the square at train.resolution="
                f"{side_px}; "
                f"{_advise_bucket_step(side_px, train.bucket_max_aspect)}train.buckets=false"
            )
        width, height = size_px
        shape = min(
            shapes,
            key=lambda s: (
                abs(math.log(s.width * height / (s.height * width))),
                -s.width * s.height,
                s.width,
            ),
        )
        side_scales = shape.width / width, shape.height / height
        kept_share = min(side_scales) / max(side_scales)
        if kept_share < _MIN_KEPT:
            cropping_phrase = (
                "squeeze a side of it to" if train.crop == "none" else "show no more than"
            )
            raise DataError(
                f"{name} is {width}x{height} px, and the nearest bucket, {shape.text}, would "
                f"{cropping_phrase} {kept_share:.0%} of it; crop or remove it, or raise "
                f"train.bucket_max_aspect={train.bucket_max_aspect:g}"
            )
        if max(side_scales) > _MAX_ENLARGED:
            raise DataError(
                f"{name} is {width}x{height} px and would be enlarged {max(side_scales):.1f} times "
                f"to fill its bucket of {shape.text}; use a larger one, or lower "
                f"train.resolution={side_px}"
            )
        return shape

    def cut(
        self, image: Image.Image, shape: ImageShape, mask: Image.Image | None = None
    ) -> CroppedImage:
        """What is seen of a photograph in a shape. mask: as large as the photograph"""
        if self.train.crop == "none":
            seen_mask = mask.resize(shape, Image.Resampling.BOX) if mask else None
            return CroppedImage(image.resize(shape, Image.Resampling.LANCZOS), 0, 0, seen_mask)
        center_x, center_y = crop_position = self._find_crop_position(image, shape, mask)
        seen_mask = (
            ImageOps.fit(mask, shape, Image.Resampling.BOX, centering=crop_position)
            if mask
            else None
        )
        cropped_image = ImageOps.fit(
            image, shape, Image.Resampling.LANCZOS, centering=(center_x, center_y)
        )
        resize_scale = max(shape.width / image.width, shape.height / image.height)
        left_px = round((resize_scale * image.width - shape.width) * center_x)
        top_px = round((resize_scale * image.height - shape.height) * center_y)
        return CroppedImage(cropped_image, left_px, top_px, seen_mask)

    def _find_crop_position(
        self, image: Image.Image, shape: ImageShape, mask: Image.Image | None
    ) -> tuple[float, float]:
        """Of the cut, across and down: from 0, at the left and top, to 1. A mask says where."""
        if self.train.crop == "center":
            return 0.5, 0.5
        resize_scale = max(shape.width / image.width, shape.height / image.height)
        saliency = np.asarray(mask) if mask else compute_saliency(image)
        return (
            find_salient_window(saliency.sum(axis=0), shape.width / (resize_scale * image.width)),
            find_salient_window(saliency.sum(axis=1), shape.height / (resize_scale * image.height)),
        )
