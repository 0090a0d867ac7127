"""How sharp a photograph is where its subject is, and whether the camera moved.

Both by the steepness of edges: the largest change a pixel over the whole change along a line of
nine pixels across, after the edge widths of Marziliano et al. 2002. It does not depend on
contrast, and what has no edges, as a soft background, does not count. Measured at 512 px, about
what a training sees.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np

_REACH_PX = 4
_MIN_RANGE, _MAX_RANGE = 8.0, 30.0
_MIN_EDGES, _MIN_EDGE_SHARE = 20, 0.002
# Along a line, upright, and along both diagonals: rows and columns a step.
_DIRECTIONS = {"across": (0, 1), "down": (1, 0), "falling": (1, 1), "rising": (1, -1)}


@dataclass(frozen=True)
class Sharpness:
    """subject: steepness of the subject's edges, 1/px; 0.35 is sharp, 0.15 plainly soft.

    evenness: of the whole frame, how steep edges are in the direction in which they are soft,
        over that at right angles to it; 1 is a still camera, 0.6 one that moved by 6 px at 512
    """

    subject: float
    evenness: float


def measure_sharpness(grey: np.ndarray, around: np.ndarray) -> Sharpness:
    """Of (H, W) grey values, 0 to 255; around: (H, W) bool, the subject and its outline.

    A subject without edges is measured by the frame's; a frame without edges has sharpness 0.
    """
    grey_range = float(np.subtract(*np.percentile(grey, [99, 1])))
    min_edge_range = float(np.clip(0.2 * grey_range, _MIN_RANGE, _MAX_RANGE))
    steepness_by_direction = {
        name: _edge_steepness(grey, step, min_edge_range) for name, step in _DIRECTIONS.items()
    }
    subject_steepness = _find_edge_percentiles(
        steepness_by_direction, around, 75
    ) or _find_edge_percentiles(steepness_by_direction, np.ones_like(around), 75)
    whole_image_steepness = _find_edge_percentiles(steepness_by_direction, np.ones_like(around), 90)
    steepness_ratios = [
        min(whole_image_steepness[one], whole_image_steepness[other])
        / max(whole_image_steepness[one], whole_image_steepness[other])
        for one, other in (("across", "down"), ("falling", "rising"))
        if one in whole_image_steepness and other in whole_image_steepness
    ]
    return Sharpness(
        min(subject_steepness.values(), default=0.0), min(steepness_ratios, default=1.0)
    )


def _edge_steepness(grey: np.ndarray, step: tuple[int, int], min_edge_range: float) -> np.ndarray:
    """(H, W): steepness of the edges that a direction crosses; 0 where there is none."""
    height, width = grey.shape
    padded_grey = np.pad(grey, _REACH_PX, mode="edge")
    row_offsets = [_REACH_PX + k * step[0] for k in range(-_REACH_PX, _REACH_PX + 1)]
    column_offsets = [_REACH_PX + k * step[1] for k in range(-_REACH_PX, _REACH_PX + 1)]
    shifted_planes = [
        padded_grey[t : t + height, x : x + width]
        for t, x in zip(row_offsets, column_offsets, strict=True)
    ]
    local_grey_range = reduce(np.maximum, shifted_planes) - reduce(np.minimum, shifted_planes)
    grey_differences = [
        np.abs(after - before)
        for before, after in zip(shifted_planes, shifted_planes[2:], strict=False)
    ]
    centre_difference = grey_differences[_REACH_PX - 1]
    is_edge = (local_grey_range >= min_edge_range) & (
        centre_difference >= reduce(np.maximum, grey_differences)
    )
    steepness: np.ndarray = np.where(
        is_edge, centre_difference / (2 * np.hypot(*step) * np.maximum(local_grey_range, 1)), 0
    )
    return steepness


def _find_edge_percentiles(
    steepness: dict[str, np.ndarray], within: np.ndarray, percent: float
) -> dict[str, float]:
    """A percentile of the edges within a region, by direction; of those with edges enough."""
    min_edge_pixels = max(_MIN_EDGES, _MIN_EDGE_SHARE * int(within.sum()))
    edge_values = {name: plane[within & (plane > 0)] for name, plane in steepness.items()}
    return {
        name: float(np.percentile(direction_steepness, percent))
        for name, direction_steepness in edge_values.items()
        if len(direction_steepness) > min_edge_pixels
    }
