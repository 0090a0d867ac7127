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
    def frame_share(self) -> float:
        """Of the frame, 0 to 1."""
        return float(self.inside.mean())

    def describe(self) -> str:
        """For people: "in what stands out, 12 % of the frame"."""
        if self.source == "frame":
            return "in the whole frame"
        return f"in {self.region_source_text}, {100 * self.frame_share:.0f} % of the frame"

    @property
    def region_source_text(self) -> str:
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
        subject_mask = _resize_mask(np.asarray(mask.convert("L")) >= 128, size)
        if subject_mask.mean() >= _MIN_SHARE:
            small_mask = _resize_mask(subject_mask, find_saliency_size(size))
            return SubjectRegion(
                subject_mask, _resize_mask(_dilate(small_mask), size) | subject_mask, source
            )
    saliency = compute_saliency(image)
    saliency_threshold = max(otsu_threshold(saliency.ravel()), 0.1)
    salient_mask = _fill_holes(saliency > saliency_threshold)
    if not _MIN_SHARE <= salient_mask.mean() < 1:
        full_mask = np.ones((size[1], size[0]), dtype=bool)
        return SubjectRegion(full_mask, full_mask, "frame")
    return SubjectRegion(
        _resize_mask(salient_mask, size),
        _resize_mask(_dilate(salient_mask), size),
        "what stands out",
    )


def _dilate(mask: np.ndarray) -> np.ndarray:
    dilated_mask = mask.copy()
    for dy, dx in NEIGHBOURS:
        height, width = mask.shape
        target_slices = (shift_slice(dy, height), shift_slice(dx, width))
        dilated_mask[target_slices] |= mask[shift_slice(-dy, height), shift_slice(-dx, width)]
    return dilated_mask


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """The mask and what it encloses: all that the frame's edge does not reach around it."""
    outside = np.zeros_like(mask)
    outside[[0, -1]], outside[:, [0, -1]] = True, True
    outside &= ~mask
    while True:
        dilated_outside = _dilate(outside) & ~mask
        if (dilated_outside == outside).all():
            return ~outside
        outside = dilated_outside


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)) > 127
