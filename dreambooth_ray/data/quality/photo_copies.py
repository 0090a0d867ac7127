"""Whether two photographs are one: cut, scaled, mirrored, recoloured or saved again.

One is laid on the other (`photo_placing.py`), and they are compared block by block. Two poses
before one backdrop agree in the backdrop alone, one subject before two grounds in itself alone.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from dreambooth_ray.data.quality.photo_placing import (
    CORE_MARGIN,
    Box,
    CopySignature,
    Placement,
    clip_box,
    correlate,
    find_place,
)

_BLOCK_PX, _STRIDE_PX, _SHIFT_PX, _OVERLAP_SIDE_PX = 24, 12, 2, 192
_MIN_BLOCK_DEVIATION, _MIN_BLOCK_CORRELATION = 6.0, 0.8
_MIN_BLOCKS, _MIN_SUBJECT_BLOCKS = 12, 6
_COLOUR_CELLS, _MAX_COLOUR_OFFSET, _COLOUR_SCALE, _COLOUR_TURNS = 12, 20.0, 8.0, 5


@dataclass(frozen=True)
class Likeness:
    """How much of two photographs is alike where they lie on each other.

    share: what agrees, 0 to 1, the least of: busy blocks of the overlap; busy blocks of the
        subject; colours of the overlap, but for a change that all of them share
    """

    share: float
    is_mirrored: bool


def compare_photographs(one: CopySignature, other: CopySignature) -> Likeness | None:
    """How alike two are where one lies on the other; None if it lies nowhere."""
    result = find_place(one, other)
    if result is None:
        return None
    placed_photo, ground, place = result
    colours, subject = placed_photo.colours, placed_photo.subject
    if place.is_mirrored:
        colours, subject = ImageOps.mirror(colours), ImageOps.mirror(subject)
    boxes = _find_overlap(colours.size, ground.colours.size, place)
    if boxes is None:
        return None
    own_box, overlap = boxes
    width, height = overlap[2] - overlap[0], overlap[3] - overlap[1]
    scale = _OVERLAP_SIDE_PX / min(width, height)
    size = round(width * scale), round(height * scale)
    own = colours.resize(size, Image.Resampling.BILINEAR, box=own_box)
    patch = ground.colours.resize(size, Image.Resampling.BILINEAR, box=overlap)
    agreement, is_busy = _correlate_blocks(_to_plane(own), _to_plane(patch))
    if is_busy.sum() < _MIN_BLOCKS:
        return None
    does_agree = agreement >= _MIN_BLOCK_CORRELATION
    shares = [float(does_agree[is_busy].mean()), _share_of_colours(own, patch)]
    mask = _to_plane(subject.resize(colours.size).resize(size, box=own_box))
    is_subject = is_busy & (_split_blocks(mask, 0, 0).mean(axis=-1) > 127)
    if is_subject.sum() >= _MIN_SUBJECT_BLOCKS:
        shares.append(float(does_agree[is_subject].mean()))
    return Likeness(min(shares), place.is_mirrored)


def _find_overlap(
    size: tuple[int, int], ground_size: tuple[int, int], place: Placement
) -> tuple[Box, Box] | None:
    """All of the overlap, not the middle alone: its box in the found image and in the ground."""
    width, height = size
    across = place.box[2] / ((1 - 2 * CORE_MARGIN) * width)
    down = place.box[3] / ((1 - 2 * CORE_MARGIN) * height)
    left = place.box[0] - CORE_MARGIN * width * across
    top = place.box[1] - CORE_MARGIN * height * down
    overlap = clip_box((left, top, width * across, height * down), ground_size)
    if overlap is None:
        return None
    own = (
        max(0.0, (overlap[0] - left) / across),
        max(0.0, (overlap[1] - top) / down),
        min(float(width), (overlap[2] - left) / across),
        min(float(height), (overlap[3] - top) / down),
    )
    return own, overlap


def _to_plane(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), np.float32)


def _correlate_blocks(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks,) best correlation over moves by 2 px, and whether either block shows anything."""
    own = _split_blocks(one, 0, 0)
    best = np.full(len(own), -1.0)
    moves = range(-_SHIFT_PX, _SHIFT_PX + 1)
    for down in moves:
        for across in moves:
            best = np.maximum(best, correlate(own, _split_blocks(other, down, across)))
    deviation = np.maximum(own.std(axis=-1), _split_blocks(other, 0, 0).std(axis=-1))
    return best, deviation >= _MIN_BLOCK_DEVIATION


def _split_blocks(plane: np.ndarray, down: int, across: int) -> np.ndarray:
    """(blocks, 24 * 24) of a plane moved by so many pixels, without its rim."""
    rim, (height, width) = _SHIFT_PX, plane.shape
    inner = plane[rim + down : height - rim + down, rim + across : width - rim + across]
    windows = np.lib.stride_tricks.sliding_window_view(inner, (_BLOCK_PX, _BLOCK_PX))
    return windows[::_STRIDE_PX, ::_STRIDE_PX].reshape(-1, _BLOCK_PX * _BLOCK_PX)


def _share_of_colours(one: Image.Image, other: Image.Image) -> float:
    """Cells whose colour follows from the other's by the affine change that most share.

    A filter changes all colours alike; another ground changes some. The change is fitted by
    reweighted least squares, so that a part which differs does not draw it along.
    """
    size = (_COLOUR_CELLS, _COLOUR_CELLS)
    colours, target = (
        np.asarray(image.resize(size, Image.Resampling.BOX), np.float64).reshape(-1, 3)
        for image in (one, other)
    )
    inputs = np.hstack([colours, np.ones((len(colours), 1))])
    weights = np.ones((len(colours), 1))
    offset = np.zeros(len(colours))
    for _ in range(_COLOUR_TURNS):
        change = np.linalg.lstsq(inputs * weights, target * weights, rcond=None)[0]
        offset = np.abs(target - inputs @ change).max(axis=1)
        weights = 1 / np.maximum(1, offset[:, None] / _COLOUR_SCALE)
    return float((offset < _MAX_COLOUR_OFFSET).mean())
