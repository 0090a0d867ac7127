"""Where the subject is: its mask if it has one, else what stands out.

What stands out is found as in Zhang et al. 2015, "Minimum Barrier Salient Object Detection at
80 FPS" (MB+): pixels that no path from the frame's edge reaches without a change of colour, and
that are unlike the colours of its sides, those in the middle first.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from dreambooth_ray.data.quality.measurements import otsu_threshold, to_lab

_SIDE_PX, _MAX_LONG_PX = 72, 288
_CENTRE_DEVIATION = 0.3
_MIN_SHARE = 0.002
# In L*a*b*, over its three axes: below it nobody sees a border.
_MIN_BARRIER = 2.0
_NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class SubjectRegion:
    """Pixels of the subject in a copy of a photograph, and where they are known from.

    inside: (H, W) bool; around: the same and a margin, with the subject's outline in it
    """

    inside: np.ndarray
    around: np.ndarray
    source: Literal["mask", "what stands out", "frame"]

    @property
    def share(self) -> float:
        """Of the frame, 0 to 1."""
        return float(self.inside.mean())

    def describe(self) -> str:
        """For people: "in what stands out, 12 % of the frame"."""
        if self.source == "frame":
            return "in the whole frame"
        noun = "its mask" if self.source == "mask" else "what stands out"
        return f"in {noun}, {100 * self.share:.0f} % of the frame"


def find_subject_region(image: Image.Image, mask: Image.Image | None = None) -> SubjectRegion:
    """The subject's pixels in an image; the whole frame where nothing stands out.

    mask: white where the subject is, of the image's framing and any size; an empty one is as none
    """
    size = image.size
    if mask is not None:
        inside = _enlarge(np.asarray(mask.convert("L")) >= 128, size)
        if inside.mean() >= _MIN_SHARE:
            return SubjectRegion(inside, _enlarge(_dilate(_shrink(inside)), size) | inside, "mask")
    salience = measure_salience(image)
    bound = max(otsu_threshold(salience.ravel()), 0.1)
    salient = _fill_holes(salience > bound)
    if not _MIN_SHARE <= salient.mean() < 1:
        everything = np.ones((size[1], size[0]), dtype=bool)
        return SubjectRegion(everything, everything, "frame")
    return SubjectRegion(
        _enlarge(salient, size), _enlarge(_dilate(salient), size), "what stands out"
    )


def measure_salience(image: Image.Image) -> np.ndarray:
    """(h, w) float32, 0 to 1, short side 72 at most: how much each part stands out."""
    scale = min(1.0, _SIDE_PX / min(image.size))
    width, height = (min(_MAX_LONG_PX, max(1, round(s * scale))) for s in image.size)
    lab = to_lab(image.resize((width, height), Image.Resampling.LANCZOS))
    lab = np.stack([_blur(lab[..., k]) for k in range(3)], axis=-1)
    planes = [np.ascontiguousarray(lab[..., k]) for k in range(3)]
    barrier = np.sum([_barrier_distance(plane) for plane in planes], axis=0)
    if barrier.max() < _MIN_BARRIER:
        return np.zeros_like(barrier)
    y, x = np.mgrid[:height, :width]
    y, x = (y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5
    centred = np.exp(-(x * x + y * y) / (2 * _CENTRE_DEVIATION**2))
    return _normalize((_normalize(barrier) + _normalize(_unlike_sides(lab))) * centred)


def _barrier_distance(plane: np.ndarray) -> np.ndarray:
    """(h, w): the least range of values on any path from the frame's edge.

    Relaxed over all pixels at once until nothing changes, where the paper scans them in turn.
    """
    height, width = plane.shape
    distance = np.full(plane.shape, np.inf, dtype=np.float32)
    distance[[0, -1]], distance[:, [0, -1]] = 0, 0
    highest, lowest = plane.copy(), plane.copy()
    for _ in range(2 * _MAX_LONG_PX):
        has_changed = False
        for dy, dx in _NEIGHBOURS:
            to = (_shifted(dy, height), _shifted(dx, width))
            start = (_shifted(-dy, height), _shifted(-dx, width))
            high = np.maximum(highest[start], plane[to])
            low = np.minimum(lowest[start], plane[to])
            cost = np.where(np.isinf(distance[start]), np.inf, high - low)
            is_nearer = cost < distance[to] - 1e-4
            if is_nearer.any():
                has_changed = True
                distance[to] = np.where(is_nearer, cost, distance[to])
                highest[to] = np.where(is_nearer, high, highest[to])
                lowest[to] = np.where(is_nearer, low, lowest[to])
        if not has_changed:
            break
    return distance


def _shifted(step: int, length: int) -> slice:
    return slice(max(step, 0), length + min(step, 0))


def _unlike_sides(lab: np.ndarray) -> np.ndarray:
    """(h, w): Mahalanobis distance to the colours of three sides, without that most unlike."""
    edge = max(2, min(lab.shape[:2]) // 20)
    distances = []
    for side in (lab[:edge], lab[-edge:], lab[:, :edge], lab[:, -edge:]):
        colours = side.reshape(-1, 3)
        spread = np.linalg.inv(np.cov(colours.T) + 10 * np.eye(3))
        offset = lab - colours.mean(axis=0)
        distances.append(_normalize(np.sqrt(np.einsum("hwi,ij,hwj->hw", offset, spread, offset))))
    stack = np.stack(distances)
    unlike: np.ndarray = stack.sum(axis=0) - stack.max(axis=0)
    return unlike


def _normalize(plane: np.ndarray) -> np.ndarray:
    normalized: np.ndarray = (plane / max(float(plane.max()), 1e-6)).astype(np.float32)
    return normalized


def _blur(plane: np.ndarray) -> np.ndarray:
    """Mean of 3 x 3."""
    padded = np.pad(plane, 1, mode="edge")
    height, width = plane.shape
    rows = np.sum([padded[k : k + height] for k in range(3)], axis=0)
    mean: np.ndarray = np.mean([rows[:, k : k + width] for k in range(3)], axis=0) / 3
    return mean.astype(np.float32)


def _dilate(mask: np.ndarray) -> np.ndarray:
    larger = mask.copy()
    for dy, dx in _NEIGHBOURS:
        height, width = mask.shape
        to = (_shifted(dy, height), _shifted(dx, width))
        larger[to] |= mask[_shifted(-dy, height), _shifted(-dx, width)]
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


def _shrink(mask: np.ndarray) -> np.ndarray:
    """To the size at which salience is measured."""
    scale = min(1.0, _SIDE_PX / min(mask.shape))
    size = [min(_MAX_LONG_PX, max(1, round(s * scale))) for s in mask.shape]
    return _enlarge(mask, (size[1], size[0]))


def _enlarge(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)) > 127
