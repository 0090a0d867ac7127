"""Where an image stands out from itself, by its spectrum, and by where photographers aim."""

import numpy as np
from PIL import Image, ImageFilter

_SIDE_PX = 64
_BLUR_PX = 2.5
# Of the weights of a Gaussian, in sides of the image.
_CENTER_DEVIATION = 0.25
# Windows that hold so much of the most that one can hold are as good as each other.
_AS_GOOD = 0.98
_NUM_WINDOWS = 65


def compute_saliency(image: Image.Image) -> np.ndarray:
    """(64, 64) float32 from 0 to 1, mean of the colours' own, less towards the edges.

    Sources: Hou and Zhang 2007, "Saliency detection: a spectral residual approach": what of the
    logarithm of the spectrum is unlike its own surroundings; Judd et al. 2009, "Learning to predict
    where humans look": weighed by the distance from the middle.
    """
    small = image.convert("RGB").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    planes = np.moveaxis(np.asarray(small, dtype=np.float64), -1, 0)
    offsets = (np.arange(_SIDE_PX) + 0.5) / _SIDE_PX - 0.5
    weights = np.exp(-0.5 * (offsets / _CENTER_DEVIATION) ** 2)
    saliency = sum(_compute_plane(plane) for plane in planes) * np.outer(weights, weights)
    return np.asarray(saliency / max(float(np.max(saliency)), 1e-9), dtype=np.float32)


def _compute_plane(plane: np.ndarray) -> np.ndarray:
    if np.ptp(plane) == 0:
        return np.zeros_like(plane)
    spectrum = np.fft.fft2(plane)
    log_amplitude = np.log(np.abs(spectrum) + 1e-6)
    padded = np.pad(log_amplitude, 1, mode="wrap")
    mean = sum(
        padded[row : row + _SIDE_PX, column : column + _SIDE_PX]
        for row in range(3)
        for column in range(3)
    )
    residual = log_amplitude - mean / 9
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    scaled = np.uint8(np.rint(255 * energy / energy.max()))
    blurred = Image.fromarray(scaled).filter(ImageFilter.GaussianBlur(_BLUR_PX))
    return np.asarray(blurred, dtype=np.float64)


def find_salient_window(profile: np.ndarray, share: float) -> float:
    """Where a window that covers `share` of an axis holds most: from 0, its start, to 1, its end.

    profile: of the axis, not negative. Of windows that hold as much, the middle one, so that what
    stands out is not at an edge; of an even profile that is the middle of the axis.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64)])
    if share >= 1 or cumulative[-1] <= 0:
        return 0.5
    positions = np.linspace(0, 1, _NUM_WINDOWS)
    edges = np.linspace(0, 1, len(cumulative))
    starts = positions * (1 - share)
    held = np.interp(starts + share, edges, cumulative) - np.interp(starts, edges, cumulative)
    return float(np.median(positions[held >= _AS_GOOD * held.max()]))
