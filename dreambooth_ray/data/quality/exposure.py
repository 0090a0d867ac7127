"""How a photograph is exposed, and its noise, from pixel values alone."""

from dataclasses import dataclass

import numpy as np

from dreambooth_ray.data.quality.measurements import split_tiles

_CLIPPED, _TOUCHED = 250, 252
# Light that overflows fills the other colours too; a pure red has none of them.
_LEAST_COLOUR = 40
_RAGGED_TILE_PX, _NOISE_TILE_PX = 8, 16


@dataclass(frozen=True)
class Exposure:
    """Grey values 0 to 255, and shares 0 to 1.

    subject_bright, frame_bright: the 95th percentile of grey
    frame_dark: the 1st percentile of grey
    subject_clipped, frame_clipped: pixels with two colours of three at their end
    subject_touched: pixels with one colour at its end and none near 0
    ragged: tiles of the frame that are clipped in part; a white wall is clipped as one piece
    """

    subject_bright: float
    frame_bright: float
    frame_dark: float
    subject_clipped: float
    frame_clipped: float
    subject_touched: float
    ragged: float


def measure_exposure(rgb: np.ndarray, grey: np.ndarray, inside: np.ndarray) -> Exposure:
    """Of (H, W, 3) and (H, W), 0 to 255; inside: (H, W) bool, the subject."""
    sorted_channels = np.sort(rgb, axis=-1)
    is_clipped = (sorted_channels[..., 1] >= _CLIPPED) & (sorted_channels[..., 0] >= _LEAST_COLOUR)
    has_clipped_channel = (sorted_channels[..., 2] >= _TOUCHED) & (
        sorted_channels[..., 0] >= _LEAST_COLOUR
    )
    tile_side = min(_RAGGED_TILE_PX, *grey.shape)
    clipped_shares = split_tiles(is_clipped.astype(np.float32), tile_side).mean(axis=1)
    return Exposure(
        subject_bright=float(np.percentile(grey[inside], 95)),
        frame_bright=float(np.percentile(grey, 95)),
        frame_dark=float(np.percentile(grey, 1)),
        subject_clipped=float(is_clipped[inside].mean()),
        frame_clipped=float(is_clipped.mean()),
        subject_touched=float(has_clipped_channel[inside].mean()),
        ragged=float(((clipped_shares > 0.05) & (clipped_shares < 0.95)).mean()),
    )


def measure_noise(rgb: np.ndarray, grey: np.ndarray) -> float:
    """Standard deviation of the grain between colours, of 255, where the image is smoothest.

    Immerkaer 1996, on red less green and blue less green, by tiles: the 20th percentile of those
    that are neither black nor white. Grass and asphalt are as rough as grain, but in all colours
    alike; grain of one colour is not found, nor that which JPEG smoothed in a small file: it keeps
    colours at half the resolution.
    """
    tile_side = min(_NOISE_TILE_PX, *(s - 2 for s in grey.shape))
    tiles = split_tiles(grey[1:-1, 1:-1], tile_side)
    is_midtone_tile = ((tiles > 240) | (tiles < 15)).mean(axis=1) < 0.1
    if is_midtone_tile.sum() < 10:
        return 0.0
    channel_differences = (rgb[..., 0] - rgb[..., 1], rgb[..., 2] - rgb[..., 1])
    tile_noise_levels = np.min(
        [_estimate_noise_per_tile(plane, tile_side) for plane in channel_differences], axis=0
    )
    return float(np.percentile(tile_noise_levels[is_midtone_tile], 20))


def _estimate_noise_per_tile(plane: np.ndarray, tile_side: int) -> np.ndarray:
    """(tiles,) standard deviation of noise by a difference of two Laplacians."""
    row_differences = plane[:-2] - 2 * plane[1:-1] + plane[2:]
    noise_residual = row_differences[:, :-2] - 2 * row_differences[:, 1:-1] + row_differences[:, 2:]
    tile_noise: np.ndarray = (
        split_tiles(np.abs(noise_residual), tile_side).mean(axis=1) * np.sqrt(np.pi / 2) / 6
    )
    return tile_noise
