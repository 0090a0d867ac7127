"""Numbers about one photograph, from its pixels alone, without a network.

The bounds that turn them into issues are in `photo_checks.py` and `inspection.py`.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dreambooth_ray.data.saliency import to_lab

_RIM_SAMPLES = 250
_BAR_STEP, _BAR_EVENNESS = 8.0, 0.8
# Share of a line over which a bar ends; a night ends nowhere at once, so black needs less.
_BAR_END, _BLACK, _BLACK_BAR_END = 0.6, 12.0, 0.2


def reduce_short_side(image: Image.Image, side_px: int) -> Image.Image:
    """Short side to `side_px` at most; never larger than it is."""
    if min(image.size) <= side_px:
        return image
    scale = side_px / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def resize_short_side(image: Image.Image, side_px: int) -> Image.Image:
    """Short side to `side_px`."""
    scale = side_px / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def to_grey(image: Image.Image) -> np.ndarray:
    """(H, W) float32, 0 to 255."""
    return np.asarray(image.convert("L"), dtype=np.float32)


def split_tiles(plane: np.ndarray, side: int) -> np.ndarray:
    """(H, W) to (tiles, side * side); what is left over at the edges is dropped."""
    num_rows, num_columns = plane.shape[0] // side, plane.shape[1] // side
    cropped_plane = plane[: num_rows * side, : num_columns * side]
    return (
        cropped_plane.reshape(num_rows, side, num_columns, side)
        .swapaxes(1, 2)
        .reshape(-1, side * side)
    )


@dataclass(frozen=True)
class BorderBars:
    """Bars at the sides, in shares of the width (left, right) and of the height (top, bottom)."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def facing_bar_width_share(self) -> float:
        """Width of the narrower of two that face each other, the wider such pair of the two."""
        return max(min(self.left, self.right), min(self.top, self.bottom))


def measure_border_bars(image: Image.Image) -> BorderBars:
    """Even bars of any colour at left, top, right and bottom; 0 where there is none.

    A line belongs to a bar where four fifths of it have one grey, that of the outermost line;
    the rest may be writing. A bar ends at once and over most of a line: a plain wall behind a
    subject does not.
    """
    grey = to_grey(image)
    height, width = grey.shape
    pixel_columns, pixel_rows = grey.T, grey
    return BorderBars(
        _measure_bar_px(pixel_columns) / width,
        _measure_bar_px(pixel_rows) / height,
        _measure_bar_px(pixel_columns[::-1]) / width,
        _measure_bar_px(pixel_rows[::-1]) / height,
    )


def _measure_bar_px(lines: np.ndarray) -> int:
    """Lines of the bar that begins at the first; lines: (L, P) grey values."""
    edge_line_grey = np.median(lines[0])
    grey_difference = np.abs(lines - edge_line_grey)
    is_bar_line = (grey_difference <= _BAR_STEP).mean(axis=1) >= _BAR_EVENNESS
    bar_px = len(lines) if is_bar_line.all() else int(np.argmin(is_bar_line))
    # Saved as JPEG, the line at the end is a mixture of both sides.
    lines_after_bar = grey_difference[bar_px : bar_px + 3]
    min_bar_end_share = _BLACK_BAR_END if edge_line_grey < _BLACK else _BAR_END
    if (
        not len(lines_after_bar)
        or (lines_after_bar > 1.5 * _BAR_STEP).mean(axis=1).max() < min_bar_end_share
    ):
        return 0
    return bar_px


def crop_border_bars(image: Image.Image, bars: BorderBars | None = None) -> Image.Image:
    """The image inside its bars; all of it where nothing else would be left."""
    bars = bars or measure_border_bars(image)
    crop_left_px, crop_top_px = round(bars.left * image.width), round(bars.top * image.height)
    crop_right_px = image.width - round(bars.right * image.width)
    crop_bottom_px = image.height - round(bars.bottom * image.height)
    if min(crop_right_px - crop_left_px, crop_bottom_px - crop_top_px) < 16:
        return image
    return image.crop((crop_left_px, crop_top_px, crop_right_px, crop_bottom_px))


def estimate_subject_extent(image: Image.Image) -> tuple[float, float]:
    """Share of the frame that the subject spreads over, by colour and by detail.

    By colour: pixels unlike all but 2 % of the frame's edge. By detail: the tenth of the
    pixels with the steepest change, weighted by how much steeper it is than all the others', so
    that a soft ground's slow changes weigh nothing beside an edge. Each is the area of the
    ellipse of two standard deviations around where they lie; an estimate of size, not a
    segmentation.
    """
    image_without_bars = crop_border_bars(image)
    lab_colours = to_lab(resize_short_side(image_without_bars, 64))
    rim_width_px = max(2, len(lab_colours) // 20)
    rim_colours = np.concatenate(
        [part.reshape(-1, 3) for part in (
            lab_colours[:rim_width_px], lab_colours[-rim_width_px:],
            lab_colours[:, :rim_width_px], lab_colours[:, -rim_width_px:],
        )]
    )  # fmt: skip
    rim_colours = rim_colours[:: max(1, len(rim_colours) // _RIM_SAMPLES)]
    squared_norms = (lab_colours**2).sum(axis=-1)[..., None] + (rim_colours**2).sum(axis=-1)
    colour_distance = np.sqrt(np.maximum(squared_norms - 2 * lab_colours @ rim_colours.T, 0))
    nearest_rank = int(0.02 * len(rim_colours))
    rim_distance = np.partition(colour_distance, nearest_rank, axis=-1)[..., nearest_rank]
    distance_threshold = max(otsu_threshold(rim_distance.ravel()), 6.0)
    foreground_colour_distance = np.where(rim_distance > distance_threshold, rim_distance, 0)
    steep_gradients = _extract_steep_gradients(image_without_bars)
    return _ellipse_area(foreground_colour_distance), _ellipse_area(steep_gradients)


def _extract_steep_gradients(image: Image.Image) -> np.ndarray:
    lab_image = to_lab(resize_short_side(image, 128))
    gradient = (
        np.abs(np.diff(lab_image, axis=1)).sum(axis=-1)[:-1]
        + np.abs(np.diff(lab_image, axis=0)).sum(axis=-1)[:, :-1]
    )
    steep_gradients: np.ndarray = np.maximum(gradient - np.percentile(gradient, 90), 0)
    return steep_gradients


def otsu_threshold(values: np.ndarray) -> float:
    """The bound that parts values into two groups as far apart as can be (Otsu 1979)."""
    bin_counts, bin_edges = np.histogram(values, 64)
    bin_centres = (bin_edges[1:] + bin_edges[:-1]) / 2
    cumulative_counts, total_count = np.cumsum(bin_counts), bin_counts.sum()
    cumulative_moments = np.cumsum(bin_counts * bin_centres)
    is_valid_split = (cumulative_counts > 0) & (cumulative_counts < total_count)
    if not is_valid_split.any():
        return float(bin_edges[-1])
    low_counts, low_moments = cumulative_counts[is_valid_split], cumulative_moments[is_valid_split]
    high_counts, high_moments = total_count - low_counts, cumulative_moments[-1] - low_moments
    class_mean_difference = low_moments / low_counts - high_moments / high_counts
    between_class_variance = low_counts * high_counts * class_mean_difference**2
    return float(bin_centres[is_valid_split][np.argmax(between_class_variance)])


def _ellipse_area(weights: np.ndarray) -> float:
    """Area of the two-deviation ellipse of weights over a frame of area 1; 0 if none."""
    total_weight = float(weights.sum())
    if not total_weight:
        return 0.0
    height, width = weights.shape
    y, x = np.mgrid[:height, :width]
    x, y = x / width, y / height
    centred_x, centred_y = (
        x - (weights * x).sum() / total_weight,
        y - (weights * y).sum() / total_weight,
    )
    variance_x, variance_y = (
        (weights * centred_x * centred_x).sum() / total_weight,
        (weights * centred_y * centred_y).sum() / total_weight,
    )
    covariance_xy = (weights * centred_x * centred_y).sum() / total_weight
    return float(
        4 * math.pi * np.sqrt(max(variance_x * variance_y - covariance_xy * covariance_xy, 0.0))
    )


def measure_rim_colours(image: Image.Image) -> np.ndarray:
    """(3, 4, 3) mean L*a*b* of the frame's edge, in 12 cells around the middle: what is behind."""
    small_lab = to_lab(crop_border_bars(image).resize((60, 60), Image.Resampling.BOX))
    cell_colours = small_lab.reshape(4, 15, 4, 15, 3).mean(axis=(1, 3))
    rim_cell_colours = [
        cell_colours[r, c] for r in range(4) for c in range(4) if r in (0, 3) or c in (0, 3)
    ]
    return np.stack(rim_cell_colours).reshape(3, 4, 3)
