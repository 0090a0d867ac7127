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
    return _scale_to_max(
        (_scale_to_max(barrier_map) + _scale_to_max(_border_colour_distance(lab))) * centre_weights
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
    cumulative_profile = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64)])
    if share >= 1 or cumulative_profile[-1] <= 0:
        return 0.5
    window_positions = np.linspace(0, 1, _NUM_WINDOWS)
    cell_edges = np.linspace(0, 1, len(cumulative_profile))
    window_starts = window_positions * (1 - share)
    window_saliency = np.interp(window_starts + share, cell_edges, cumulative_profile) - np.interp(
        window_starts, cell_edges, cumulative_profile
    )
    return float(np.median(window_positions[window_saliency >= _AS_GOOD * window_saliency.max()]))


def to_lab(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 CIE L*a*b*, D65, of an sRGB image."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    linear_rgb = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    rgb_to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
    )
    xyz = linear_rgb @ rgb_to_xyz.T / np.array([0.9505, 1.0, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    planes = (116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2]))
    return np.stack(planes, axis=-1).astype(np.float32)


def _barrier_distance(plane: np.ndarray) -> np.ndarray:
    """(h, w): the least range of values on any path from the frame's edge.

    Relaxed over all pixels at once until nothing changes, where the paper scans them in turn.
    """
    height, width = plane.shape
    barrier_distance = np.full(plane.shape, np.inf, dtype=np.float32)
    barrier_distance[[0, -1]], barrier_distance[:, [0, -1]] = 0, 0
    path_max, path_min = plane.copy(), plane.copy()
    for _ in range(2 * _MAX_LONG_PX):
        has_changed = False
        for dy, dx in NEIGHBOURS:
            target_slices = (shift_slice(dy, height), shift_slice(dx, width))
            source_slices = (shift_slice(-dy, height), shift_slice(-dx, width))
            new_path_max = np.maximum(path_max[source_slices], plane[target_slices])
            new_path_min = np.minimum(path_min[source_slices], plane[target_slices])
            barrier_cost = np.where(
                np.isinf(barrier_distance[source_slices]), np.inf, new_path_max - new_path_min
            )
            is_lower_cost = barrier_cost < barrier_distance[target_slices] - 1e-4
            if is_lower_cost.any():
                has_changed = True
                barrier_distance[target_slices] = np.where(
                    is_lower_cost, barrier_cost, barrier_distance[target_slices]
                )
                path_max[target_slices] = np.where(
                    is_lower_cost, new_path_max, path_max[target_slices]
                )
                path_min[target_slices] = np.where(
                    is_lower_cost, new_path_min, path_min[target_slices]
                )
        if not has_changed:
            break
    return barrier_distance


def shift_slice(step: int, length: int) -> slice:
    """Of an axis, what is still on it after a shift by `step`."""
    return slice(max(step, 0), length + min(step, 0))


def _border_colour_distance(lab: np.ndarray) -> np.ndarray:
    """(h, w): Mahalanobis distance to the colours of three sides, without that most unlike."""
    border_px = max(2, min(lab.shape[:2]) // 20)
    side_distances = []
    for border_strip in (
        lab[:border_px],
        lab[-border_px:],
        lab[:, :border_px],
        lab[:, -border_px:],
    ):
        border_colours = border_strip.reshape(-1, 3)
        inverse_covariance = np.linalg.inv(np.cov(border_colours.T) + 10 * np.eye(3))
        border_colour_offset = lab - border_colours.mean(axis=0)
        side_distances.append(
            _scale_to_max(
                np.sqrt(
                    np.einsum(
                        "hwi,ij,hwj->hw",
                        border_colour_offset,
                        inverse_covariance,
                        border_colour_offset,
                    )
                )
            )
        )
    distance_maps = np.stack(side_distances)
    border_dissimilarity: np.ndarray = distance_maps.sum(axis=0) - distance_maps.max(axis=0)
    return border_dissimilarity


def _scale_to_max(plane: np.ndarray) -> np.ndarray:
    scaled_plane: np.ndarray = (plane / max(float(plane.max()), 1e-6)).astype(np.float32)
    return scaled_plane


def _blur(plane: np.ndarray) -> np.ndarray:
    """Mean of 3 x 3."""
    padded_plane = np.pad(plane, 1, mode="edge")
    height, width = plane.shape
    row_sums = np.sum([padded_plane[k : k + height] for k in range(3)], axis=0)
    blurred_plane: np.ndarray = np.mean([row_sums[:, k : k + width] for k in range(3)], axis=0) / 3
    return blurred_plane.astype(np.float32)
