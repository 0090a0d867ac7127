"""Where the subject is: its mask if it has one, else what stands out."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from dreambooth_ray.data.quality.measurements import otsu_threshold
from dreambooth_ray.data.saliency import (
    NEIGHBOURS,
    compute_saliency,
    find_saliency_size,
    shift_slice,
)

_MIN_SHARE = 0.002

RegionSource = Literal["mask", "proposed mask", "what stands out", "frame"]


@dataclass(frozen=True)
class SubjectRegion:
    """Pixels of the subject in a copy of a photograph, and where they are known from.

    inside: (H, W) bool; around: the same and a margin, with the subject's outline in it
    """

    inside: np.ndarray
    around: np.ndarray
    source: RegionSource

    @property
    def share(self) -> float:
        """Of the frame, 0 to 1."""
        return float(self.inside.mean())

    def describe(self) -> str:
        """For people: "in what stands out, 12 % of the frame"."""
        if self.source == "frame":
            return "in the whole frame"
        return f"in {self.noun}, {100 * self.share:.0f} % of the frame"

    @property
    def noun(self) -> str:
        """What it is, of a photograph."""
        return "its mask" if self.source == "mask" else self.source


def find_subject_region(
    image: Image.Image, mask: Image.Image | None = None, source: RegionSource = "mask"
) -> SubjectRegion:
    """The subject's pixels in an image; the whole frame where nothing stands out.

    mask: white where the subject is, of the image's framing and any size; an empty one is as none
    source: what the mask is
    """
    size = image.size
    if mask is not None:
        inside = _enlarge(np.asarray(mask.convert("L")) >= 128, size)
        if inside.mean() >= _MIN_SHARE:
            small = _enlarge(inside, find_saliency_size(size))
            return SubjectRegion(inside, _enlarge(_dilate(small), size) | inside, source)
    saliency = compute_saliency(image)
    bound = max(otsu_threshold(saliency.ravel()), 0.1)
    salient = _fill_holes(saliency > bound)
    if not _MIN_SHARE <= salient.mean() < 1:
        everything = np.ones((size[1], size[0]), dtype=bool)
        return SubjectRegion(everything, everything, "frame")
    return SubjectRegion(
        _enlarge(salient, size), _enlarge(_dilate(salient), size), "what stands out"
    )


def _dilate(mask: np.ndarray) -> np.ndarray:
    larger = mask.copy()
    for dy, dx in NEIGHBOURS:
        height, width = mask.shape
        to = (shift_slice(dy, height), shift_slice(dx, width))
        larger[to] |= mask[shift_slice(-dy, height), shift_slice(-dx, width)]
    return larger


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """The mask and what it encloses: all that the frame's edge does not reach around it."""
    outside = np.zeros_like(mask)
    outside[[0, -1]], outside[:, [0, -1]] = True, True
    outside &= ~mask
    while True:
        larger = _dilate(outside) & ~mask
        if (larger == outside).all():
            return ~outside
        outside = larger


def _enlarge(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)) > 127
