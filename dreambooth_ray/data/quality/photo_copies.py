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
    PhotoMatchFeatures,
    PhotoPlacement,
    clip_box,
    correlate_vectors,
    find_placement,
)

_BLOCK_PX, _STRIDE_PX, _SHIFT_PX, _OVERLAP_SIDE_PX = 24, 12, 2, 192
_MIN_BLOCK_DEVIATION, _MIN_BLOCK_CORRELATION = 6.0, 0.8
_MIN_BLOCKS, _MIN_SUBJECT_BLOCKS = 12, 6
_COLOUR_CELLS, _MAX_COLOUR_OFFSET, _COLOUR_SCALE, _COLOUR_TURNS = 12, 20.0, 8.0, 5


@dataclass(frozen=True)
class PhotoLikeness:
    """How much of two photographs is alike where they lie on each other.

    share: what agrees, 0 to 1, the least of: busy blocks of the overlap; busy blocks of the
        subject; colours of the overlap, but for a change that all of them share
    """

    share: float
    is_mirrored: bool


def compare_two_photographs(
    one: PhotoMatchFeatures, other: PhotoMatchFeatures
) -> PhotoLikeness | None:
    """How alike two are where one lies on the other; None if it lies nowhere."""
    found_placement = find_placement(one, other)
    if found_placement is None:
        return None
    placed_photo, base_photo, placement = found_placement
    placed_image, subject_mask = placed_photo.colours, placed_photo.subject
    if placement.is_mirrored:
        placed_image, subject_mask = ImageOps.mirror(placed_image), ImageOps.mirror(subject_mask)
    overlap_boxes = _find_overlap(placed_image.size, base_photo.colours.size, placement)
    if overlap_boxes is None:
        return None
    placed_box, overlap_box = overlap_boxes
    width, height = overlap_box[2] - overlap_box[0], overlap_box[3] - overlap_box[1]
    scale = _OVERLAP_SIDE_PX / min(width, height)
    size = round(width * scale), round(height * scale)
    placed_patch = placed_image.resize(size, Image.Resampling.BILINEAR, box=placed_box)
    base_patch = base_photo.colours.resize(size, Image.Resampling.BILINEAR, box=overlap_box)
    block_correlations, is_textured_block = _correlate_blocks(
        _to_grey_plane(placed_patch), _to_grey_plane(base_patch)
    )
    if is_textured_block.sum() < _MIN_BLOCKS:
        return None
    is_matching_block = block_correlations >= _MIN_BLOCK_CORRELATION
    matching_shares = [
        float(is_matching_block[is_textured_block].mean()),
        _measure_colour_agreement(placed_patch, base_patch),
    ]
    mask_pixels = _to_grey_plane(
        subject_mask.resize(placed_image.size).resize(size, box=placed_box)
    )
    is_subject_block = is_textured_block & (
        _split_image_blocks(mask_pixels, 0, 0).mean(axis=-1) > 127
    )
    if is_subject_block.sum() >= _MIN_SUBJECT_BLOCKS:
        matching_shares.append(float(is_matching_block[is_subject_block].mean()))
    return PhotoLikeness(min(matching_shares), placement.is_mirrored)


def _find_overlap(
    size: tuple[int, int], base_size: tuple[int, int], placement: PhotoPlacement
) -> tuple[Box, Box] | None:
    """All of the overlap, not the middle alone: its box in the placed one and in the base."""
    width, height = size
    scale_x = placement.box[2] / ((1 - 2 * CORE_MARGIN) * width)
    scale_y = placement.box[3] / ((1 - 2 * CORE_MARGIN) * height)
    left = placement.box[0] - CORE_MARGIN * width * scale_x
    top = placement.box[1] - CORE_MARGIN * height * scale_y
    overlap_box = clip_box((left, top, width * scale_x, height * scale_y), base_size)
    if overlap_box is None:
        return None
    placed_box = (
        max(0.0, (overlap_box[0] - left) / scale_x),
        max(0.0, (overlap_box[1] - top) / scale_y),
        min(float(width), (overlap_box[2] - left) / scale_x),
        min(float(height), (overlap_box[3] - top) / scale_y),
    )
    return placed_box, overlap_box


def _to_grey_plane(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), np.float32)


def _correlate_blocks(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks,) best correlation over moves by 2 px, and whether either block shows anything."""
    first_image_blocks = _split_image_blocks(one, 0, 0)
    best_correlations = np.full(len(first_image_blocks), -1.0)
    shifts = range(-_SHIFT_PX, _SHIFT_PX + 1)
    for shift_y in shifts:
        for shift_x in shifts:
            best_correlations = np.maximum(
                best_correlations,
                correlate_vectors(first_image_blocks, _split_image_blocks(other, shift_y, shift_x)),
            )
    block_deviations = np.maximum(
        first_image_blocks.std(axis=-1), _split_image_blocks(other, 0, 0).std(axis=-1)
    )
    return best_correlations, block_deviations >= _MIN_BLOCK_DEVIATION


def _split_image_blocks(plane: np.ndarray, shift_y: int, shift_x: int) -> np.ndarray:
    """(blocks, 24 * 24) of a plane moved by so many pixels, without its rim."""
    margin_px, (height, width) = _SHIFT_PX, plane.shape
    shifted_plane = plane[
        margin_px + shift_y : height - margin_px + shift_y,
        margin_px + shift_x : width - margin_px + shift_x,
    ]
    pixel_windows = np.lib.stride_tricks.sliding_window_view(shifted_plane, (_BLOCK_PX, _BLOCK_PX))
    return pixel_windows[::_STRIDE_PX, ::_STRIDE_PX].reshape(-1, _BLOCK_PX * _BLOCK_PX)


def _measure_colour_agreement(one: Image.Image, other: Image.Image) -> float:
    """Cells whose colour follows from the other's by the affine change that most share.

    A filter changes all colours alike; another ground changes some. The change is fitted by
    reweighted least squares, so that a part which differs does not draw it along.
    """
    size = (_COLOUR_CELLS, _COLOUR_CELLS)
    source_colours, target_colours = (
        np.asarray(image.resize(size, Image.Resampling.BOX), np.float64).reshape(-1, 3)
        for image in (one, other)
    )
    affine_inputs = np.hstack([source_colours, np.ones((len(source_colours), 1))])
    fit_weights = np.ones((len(source_colours), 1))
    colour_residuals = np.zeros(len(source_colours))
    for _ in range(_COLOUR_TURNS):
        affine_map = np.linalg.lstsq(
            affine_inputs * fit_weights, target_colours * fit_weights, rcond=None
        )[0]
        colour_residuals = np.abs(target_colours - affine_inputs @ affine_map).max(axis=1)
        fit_weights = 1 / np.maximum(1, colour_residuals[:, None] / _COLOUR_SCALE)
    return float((colour_residuals < _MAX_COLOUR_OFFSET).mean())
