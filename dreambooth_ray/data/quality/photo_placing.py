"""Where one photograph lies on another: cut, scaled or mirrored.

The middle of each is looked for in the other, in several sizes and mirrored, by normalised
cross-correlation (Lewis 1995), on a grid of 64 px. The best places are refined by small moves.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageOps

from dreambooth_ray.data.quality.subject_region import SubjectRegion

Box = tuple[float, float, float, float]
CORE_MARGIN = 0.2
_GRID_PX, _KEPT_SIDE_PX = 64, 384
_SIZES = tuple(1.08**-k for k in range(10))
_NUM_PLACES = 4
# On the grid; on the way; and at the end, where copies have 0.95 and more.
_MIN_CORRELATION, _MIN_REFINED, _MIN_FINAL = 0.65, 0.85, 0.94
# Short side of the middle at each turn of the refinement, and steps there, of a pixel at 48.
_COARSE, _FINE = (48, (1.0, 0.5)), ((96, (0.6, 0.3)), (144, (0.3, 0.15)))


@dataclass(frozen=True)
class PhotoPlacement:
    """A box in one photograph where the middle of another was found.

    box: left, top, width, height, in pixels of the kept copy
    """

    correlation: float
    box: Box
    is_mirrored: bool


class PhotoMatchFeatures:
    """What a photograph is compared by: a small copy, a grey grid, and spectra.

    image: inside its bars; region: the subject in it, of any size
    """

    def __init__(self, image: Image.Image, region: SubjectRegion) -> None:
        scale = min(1.0, _KEPT_SIDE_PX / min(image.size))
        size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
        self.colours = image.resize(size, Image.Resampling.BOX)
        self.grey = self.colours.convert("L")
        self.subject = Image.fromarray(region.inside.astype(np.uint8) * 255)
        grid_scale = _GRID_PX / max(size)
        self.grid_px_size = max(4, round(size[0] * grid_scale)), max(4, round(size[1] * grid_scale))
        # Pixels of the kept copy in a pixel of the grid.
        self.grid_step = max(size) / _GRID_PX

    @property
    def template_source_box(self) -> Box:
        """Left, top, right, bottom of the middle that is looked for elsewhere."""
        width, height = self.grey.size
        start_fraction, end_fraction = CORE_MARGIN, 1 - CORE_MARGIN
        return (
            width * start_fraction,
            height * start_fraction,
            width * end_fraction,
            height * end_fraction,
        )

    @cached_property
    def grey_grid(self) -> np.ndarray:
        """(h, w): the grid, its mean taken off."""
        grey_cells = np.asarray(
            self.grey.resize(self.grid_px_size, Image.Resampling.BOX), np.float64
        )
        centred_grid: np.ndarray = grey_cells - grey_cells.mean()
        return centred_grid

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Of the grey grid, padded to the grid's square."""
        return np.fft.rfft2(self.grey_grid, (_GRID_PX, _GRID_PX)).astype(np.complex64)

    @cached_property
    def integral_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Summed areas of the grey grid and of its squares."""
        return _compute_integral_image(self.grey_grid), _compute_integral_image(self.grey_grid**2)

    @cached_property
    def templates(self) -> tuple[list[tuple[int, int, bool]], np.ndarray]:
        """The middle in each size, upright and mirrored: (height, width, mirrored), spectra."""
        centre_image = self.grey.resize(
            (_GRID_PX, _GRID_PX), Image.Resampling.BOX, box=self.template_source_box
        )
        template_shapes, template_spectra = [], []
        for size_factor in _SIZES:
            width, height = (max(4, round(0.6 * s * size_factor)) for s in self.grid_px_size)
            image_template = np.asarray(
                centre_image.resize((width, height), Image.Resampling.BOX), np.float64
            )
            image_template = image_template - image_template.mean()
            image_template /= np.sqrt((image_template**2).sum()) + 1e-3
            for is_mirrored in (False, True):
                oriented_template = image_template[:, ::-1] if is_mirrored else image_template
                template_shapes.append((height, width, is_mirrored))
                template_spectra.append(
                    np.conj(np.fft.rfft2(oriented_template, (_GRID_PX, _GRID_PX)))
                )
        return template_shapes, np.stack(template_spectra).astype(np.complex64)


def find_placement(
    one: PhotoMatchFeatures, other: PhotoMatchFeatures
) -> tuple[PhotoMatchFeatures, PhotoMatchFeatures, PhotoPlacement] | None:
    """Which of two lies where on which: (placed_photo, base_photo, placement); None if nowhere."""
    placements = [(one, other, p) for p in _find_placements(one, other)]
    placements += [(other, one, p) for p in _find_placements(other, one)]
    placements = sorted(placements, key=lambda row: -row[2].correlation)[:_NUM_PLACES]
    if not placements or placements[0][2].correlation < _MIN_CORRELATION:
        return None
    refined_placements = [
        (a, b, _refine_placement(a, b, placement, *_COARSE)) for a, b, placement in placements
    ]
    placed_photo, base_photo, placement = max(
        refined_placements, key=lambda row: row[2].correlation
    )
    for side_px, step_sizes in _FINE:
        if placement.correlation < _MIN_REFINED:
            return None
        placement = _refine_placement(placed_photo, base_photo, placement, side_px, step_sizes)
    return None if placement.correlation < _MIN_FINAL else (placed_photo, base_photo, placement)


def clip_box(box: Box, size: tuple[int, int]) -> Box | None:
    """Left, top, right, bottom inside an image; None if hardly anything is left."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(size[0]), box[0] + box[2]), min(float(size[1]), box[1] + box[3])
    return None if min(right - left, bottom - top) < 8 else (left, top, right, bottom)


def correlate_vectors(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Normalised correlation along the last axis."""
    centred_one = one - one.mean(axis=-1, keepdims=True)
    centred_other = other - other.mean(axis=-1, keepdims=True)
    squared_norm_product = (centred_one**2).sum(axis=-1) * (centred_other**2).sum(axis=-1)
    correlation: np.ndarray = (centred_one * centred_other).sum(axis=-1) / np.sqrt(
        squared_norm_product + 1e-3
    )
    return correlation


def _compute_integral_image(plane: np.ndarray) -> np.ndarray:
    return np.pad(plane.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _find_placements(
    placed_photo: PhotoMatchFeatures, base_photo: PhotoMatchFeatures
) -> list[PhotoPlacement]:
    """The best place in `base_photo` for the middle of `placed_photo`, by size and orientation."""
    template_shapes, template_spectra = placed_photo.templates
    correlations = np.fft.irfft2(template_spectra * base_photo.spectrum, (_GRID_PX, _GRID_PX))
    num_rows, num_columns = base_photo.grey_grid.shape
    placements = []
    for (height, width, is_mirrored), correlation in zip(
        template_shapes, correlations, strict=True
    ):
        if height > num_rows or width > num_columns:
            continue
        value_sums, square_sums = (
            s[height:, width:] - s[:-height, width:] - s[height:, :-width] + s[:-height, :-width]
            for s in base_photo.integral_images
        )
        num_pixels = height * width
        window_norms = np.sqrt(
            np.maximum(square_sums - value_sums**2 / num_pixels, 4.0 * num_pixels)
        )
        normalized_correlation = (
            correlation[: num_rows - height + 1, : num_columns - width + 1] / window_norms
        )
        top, left = divmod(int(normalized_correlation.argmax()), normalized_correlation.shape[1])
        grid_step = base_photo.grid_step
        box = (left * grid_step, top * grid_step, width * grid_step, height * grid_step)
        placements.append(PhotoPlacement(float(normalized_correlation.max()), box, is_mirrored))
    return placements


def _refine_placement(
    placed_photo: PhotoMatchFeatures,
    base_photo: PhotoMatchFeatures,
    placement: PhotoPlacement,
    side_px: int,
    step_sizes: tuple[float, ...],
) -> PhotoPlacement:
    """The place moved and scaled by steps for as long as the two agree better."""
    left, top, right, bottom = placed_photo.template_source_box
    scale = side_px / min(right - left, bottom - top)
    size = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
    centre_image = placed_photo.grey.resize(
        size, Image.Resampling.BILINEAR, box=placed_photo.template_source_box
    )
    centre_pixels = np.asarray(
        ImageOps.mirror(centre_image) if placement.is_mirrored else centre_image, np.float32
    )

    def correlate_at_box(box: Box) -> float:
        clipped_box = clip_box(box, base_photo.grey.size)
        if clipped_box is None:
            return -1.0
        base_patch = base_photo.grey.resize(size, Image.Resampling.BILINEAR, box=clipped_box)
        return float(
            correlate_vectors(centre_pixels.ravel(), np.asarray(base_patch, np.float32).ravel())
        )

    box, best_correlation = placement.box, correlate_at_box(placement.box)
    for step_px in (s * min(base_photo.grey.size) / 48 for s in step_sizes):
        for _ in range(6):
            moved_boxes = _list_neighbour_boxes(box, step_px)
            box_correlations = [correlate_at_box(b) for b in moved_boxes]
            index = int(np.argmax(box_correlations))
            if box_correlations[index] <= best_correlation:
                break
            best_correlation, box = box_correlations[index], moved_boxes[index]
    return PhotoPlacement(best_correlation, box, placement.is_mirrored)


def _list_neighbour_boxes(box: Box, step: float) -> list[Box]:
    left, top, width, height = box
    moved_boxes = [
        (left + dx * step, top + dy * step, width, height)
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    for width_growth in (step, -step):
        height_growth = width_growth * height / width
        moved_boxes.append(
            (
                left - width_growth / 2,
                top - height_growth / 2,
                width + width_growth,
                height + height_growth,
            )
        )
    return moved_boxes
