"""What of an image stands out, and the window that holds most of it.

As in Zhang et al. 2015, "Minimum Barrier Salient Object Detection at 80 FPS" (MB+): pixels that no
path from the frame's edge reaches without a change of colour, and that are unlike the colours of
its sides, those in the middle first.
"""

import numpy as np
from PIL import Image

_SIDE_PX, _MAX_LONG_PX = 72, 288
_CENTRE_DEVIATION = 0.3
# In L*a*b*, over its three axes: below it nobody sees a border.
_MIN_BARRIER = 2.0
NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1))
# Windows that hold so much of the most that one can hold are as good as each other.
_AS_GOOD = 0.98
_NUM_WINDOWS = 65


def compute_saliency(image: Image.Image) -> np.ndarray:
    """(h, w) float32, 0 to 1, short side 72 at most: how much each part stands out."""
    width, height = find_saliency_size(image.size)
    lab = to_lab(image.resize((width, height), Image.Resampling.LANCZOS))
    lab = np.stack([_blur(lab[..., k]) for k in range(3)], axis=-1)
    planes = [np.ascontiguousarray(lab[..., k]) for k in range(3)]
    barrier_map = np.sum([_barrier_distance(plane) for plane in planes], axis=0)
    if barrier_map.max() < _MIN_BARRIER:
        return np.zeros_like(barrier_map)
    y, x = np.mgrid[:height, :width]
    y, x = (y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5
    centre_weights = np.exp(-(x * x + y * y) / (2 * _CENTRE_DEVIATION**2))
    return _normalize(
        (_normalize(barrier_map) + _normalize(_border_colour_distance(lab))) * centre_weights
    )


def find_saliency_size(size_px: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the map of an image of a size: short side 72 at most."""
    scale = min(1.0, _SIDE_PX / min(size_px))
    width, height = (min(_MAX_LONG_PX, max(1, round(s * scale))) for s in size_px)
    return width, height


def find_salient_window(profile: np.ndarray, share: float) -> float:
    """Where a window that covers `share` of an axis holds most: from 0, its start, to 1, its end.

    profile: of the axis, not negative. Of windows that hold as much, the middle one, so that what
    stands out is not at an edge; of an even profile that is the middle of the axis.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64)])
    if share >= 1 or cumulative[-1] <= 0:
        return 0.5
    positions = np.linspace(0, 1, _NUM_WINDOWS)
    bin_edges = np.linspace(0, 1, len(cumulative))
    window_starts = positions * (1 - share)
    window_saliency = np.interp(window_starts + share, bin_edges, cumulative) - np.interp(
        window_starts, bin_edges, cumulative
    )
    return float(np.median(positions[window_saliency >= _AS_GOOD * window_saliency.max()]))


def to_lab(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 CIE L*a*b*, D65, of an sRGB image."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    planes = (116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2]))
    return np.stack(planes, axis=-1).astype(np.float32)


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
        for dy, dx in NEIGHBOURS:
            target_slices = (shift_slice(dy, height), shift_slice(dx, width))
            source_slices = (shift_slice(-dy, height), shift_slice(-dx, width))
            high = np.maximum(highest[source_slices], plane[target_slices])
            low = np.minimum(lowest[source_slices], plane[target_slices])
            cost = np.where(np.isinf(distance[source_slices]), np.inf, high - low)
            is_nearer = cost < distance[target_slices] - 1e-4
            if is_nearer.any():
                has_changed = True
                distance[target_slices] = np.where(is_nearer, cost, distance[target_slices])
                highest[target_slices] = np.where(is_nearer, high, highest[target_slices])
                lowest[target_slices] = np.where(is_nearer, low, lowest[target_slices])
        if not has_changed:
            break
    return distance


def shift_slice(step: int, length: int) -> slice:
    """Of an axis, what is still on it after a shift by `step`."""
    return slice(max(step, 0), length + min(step, 0))


def _border_colour_distance(lab: np.ndarray) -> np.ndarray:
    """(h, w): Mahalanobis distance to the colours of three sides, without that most unlike."""
    border_px = max(2, min(lab.shape[:2]) // 20)
    distances = []
    for border_strip in (
        lab[:border_px],
        lab[-border_px:],
        lab[:, :border_px],
        lab[:, -border_px:],
    ):
        border_colours = border_strip.reshape(-1, 3)
        inverse_covariance = np.linalg.inv(np.cov(border_colours.T) + 10 * np.eye(3))
        colour_offset = lab - border_colours.mean(axis=0)
        distances.append(
            _normalize(
                np.sqrt(
                    np.einsum("hwi,ij,hwj->hw", colour_offset, inverse_covariance, colour_offset)
                )
            )
        )
    distance_maps = np.stack(distances)
    dissimilarity: np.ndarray = distance_maps.sum(axis=0) - distance_maps.max(axis=0)
    return dissimilarity


def _normalize(plane: np.ndarray) -> np.ndarray:
    normalized: np.ndarray = (plane / max(float(plane.max()), 1e-6)).astype(np.float32)
    return normalized


def _blur(plane: np.ndarray) -> np.ndarray:
    """Mean of 3 x 3."""
    padded = np.pad(plane, 1, mode="edge")
    height, width = plane.shape
    row_sums = np.sum([padded[k : k + height] for k in range(3)], axis=0)
    mean: np.ndarray = np.mean([row_sums[:, k : k + width] for k in range(3)], axis=0) / 3
    return mean.astype(np.float32)
