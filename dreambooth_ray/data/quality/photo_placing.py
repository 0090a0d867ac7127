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
class Placement:
    """A box in one photograph where the middle of another was found.

    box: left, top, width, height, in pixels of the kept copy
    """

    correlation: float
    box: Box
    is_mirrored: bool


class CopySignature:
    """What a photograph is compared by: a small copy, a grey grid, and spectra.

    image: inside its bars; region: the subject in it, of any size
    """

    def __init__(self, image: Image.Image, region: SubjectRegion) -> None:
        scale = min(1.0, _KEPT_SIDE_PX / min(image.size))
        size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
        self.colours = image.resize(size, Image.Resampling.BOX)
        self.grey = self.colours.convert("L")
        self.subject = Image.fromarray(region.inside.astype(np.uint8) * 255)
        factor = _GRID_PX / max(size)
        self.grid_px_size = max(4, round(size[0] * factor)), max(4, round(size[1] * factor))
        # Pixels of the kept copy in a pixel of the grid.
        self.grid_step = max(size) / _GRID_PX

    @property
    def core_box(self) -> Box:
        """Left, top, right, bottom of the middle that is looked for elsewhere."""
        width, height = self.grey.size
        low, high = CORE_MARGIN, 1 - CORE_MARGIN
        return width * low, height * low, width * high, height * high

    @cached_property
    def plane(self) -> np.ndarray:
        """(h, w): the grid, its mean taken off."""
        grid = np.asarray(self.grey.resize(self.grid_px_size, Image.Resampling.BOX), np.float64)
        plane: np.ndarray = grid - grid.mean()
        return plane

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Of the plane, padded to the grid's square."""
        return np.fft.rfft2(self.plane, (_GRID_PX, _GRID_PX)).astype(np.complex64)

    @cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Summed areas of the plane and of its squares."""
        return _sum_areas(self.plane), _sum_areas(self.plane**2)

    @cached_property
    def templates(self) -> tuple[list[tuple[int, int, bool]], np.ndarray]:
        """The middle in each size, upright and mirrored: (height, width, mirrored), spectra."""
        core = self.grey.resize((_GRID_PX, _GRID_PX), Image.Resampling.BOX, box=self.core_box)
        shapes, spectra = [], []
        for size in _SIZES:
            width, height = (max(4, round(0.6 * s * size)) for s in self.grid_px_size)
            template = np.asarray(core.resize((width, height), Image.Resampling.BOX), np.float64)
            template = template - template.mean()
            template /= np.sqrt((template**2).sum()) + 1e-3
            for is_mirrored in (False, True):
                oriented = template[:, ::-1] if is_mirrored else template
                shapes.append((height, width, is_mirrored))
                spectra.append(np.conj(np.fft.rfft2(oriented, (_GRID_PX, _GRID_PX))))
        return shapes, np.stack(spectra).astype(np.complex64)


def find_place(
    one: CopySignature, other: CopySignature
) -> tuple[CopySignature, CopySignature, Placement] | None:
    """Which of two lies where on which: (found, ground, place); None if it lies nowhere."""
    places = [(one, other, p) for p in _find_places(one, other)]
    places += [(other, one, p) for p in _find_places(other, one)]
    places = sorted(places, key=lambda row: -row[2].correlation)[:_NUM_PLACES]
    if not places or places[0][2].correlation < _MIN_CORRELATION:
        return None
    refined = [(a, b, _refine(a, b, place, *_COARSE)) for a, b, place in places]
    found, ground, place = max(refined, key=lambda row: row[2].correlation)
    for side_px, steps in _FINE:
        if place.correlation < _MIN_REFINED:
            return None
        place = _refine(found, ground, place, side_px, steps)
    return None if place.correlation < _MIN_FINAL else (found, ground, place)


def clip_box(box: Box, size: tuple[int, int]) -> Box | None:
    """Left, top, right, bottom inside an image; None if hardly anything is left."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(size[0]), box[0] + box[2]), min(float(size[1]), box[1] + box[3])
    return None if min(right - left, bottom - top) < 8 else (left, top, right, bottom)


def correlate(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Normalised correlation along the last axis."""
    one = one - one.mean(axis=-1, keepdims=True)
    other = other - other.mean(axis=-1, keepdims=True)
    energy = (one**2).sum(axis=-1) * (other**2).sum(axis=-1)
    correlation: np.ndarray = (one * other).sum(axis=-1) / np.sqrt(energy + 1e-3)
    return correlation


def _sum_areas(plane: np.ndarray) -> np.ndarray:
    return np.pad(plane.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _find_places(found: CopySignature, ground: CopySignature) -> list[Placement]:
    """The best place in `ground` for the middle of `found`, for each size and orientation."""
    shapes, spectra = found.templates
    correlations = np.fft.irfft2(spectra * ground.spectrum, (_GRID_PX, _GRID_PX))
    rows, columns = ground.plane.shape
    places = []
    for (height, width, is_mirrored), plane in zip(shapes, correlations, strict=True):
        if height > rows or width > columns:
            continue
        total, squares = (
            s[height:, width:] - s[:-height, width:] - s[height:, :-width] + s[:-height, :-width]
            for s in ground.sums
        )
        count = height * width
        energy = np.sqrt(np.maximum(squares - total**2 / count, 4.0 * count))
        normalized = plane[: rows - height + 1, : columns - width + 1] / energy
        top, left = divmod(int(normalized.argmax()), normalized.shape[1])
        step = ground.grid_step
        box = (left * step, top * step, width * step, height * step)
        places.append(Placement(float(normalized.max()), box, is_mirrored))
    return places


def _refine(
    found: CopySignature,
    ground: CopySignature,
    place: Placement,
    side_px: int,
    steps: tuple[float, ...],
) -> Placement:
    """The place moved and scaled by steps for as long as the two agree better."""
    left, top, right, bottom = found.core_box
    scale = side_px / min(right - left, bottom - top)
    size = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
    core = found.grey.resize(size, Image.Resampling.BILINEAR, box=found.core_box)
    target = np.asarray(ImageOps.mirror(core) if place.is_mirrored else core, np.float32)

    def score(box: Box) -> float:
        clipped = clip_box(box, ground.grey.size)
        if clipped is None:
            return -1.0
        patch = ground.grey.resize(size, Image.Resampling.BILINEAR, box=clipped)
        return float(correlate(target.ravel(), np.asarray(patch, np.float32).ravel()))

    box, best = place.box, score(place.box)
    for step in (s * min(ground.grey.size) / 48 for s in steps):
        for _ in range(6):
            moves = _move_box(box, step)
            scores = [score(b) for b in moves]
            index = int(np.argmax(scores))
            if scores[index] <= best:
                break
            best, box = scores[index], moves[index]
    return Placement(best, box, place.is_mirrored)


def _move_box(box: Box, step: float) -> list[Box]:
    left, top, width, height = box
    moved = [
        (left + dx * step, top + dy * step, width, height)
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    for grow in (step, -step):
        higher = grow * height / width
        moved.append((left - grow / 2, top - higher / 2, width + grow, height + higher))
    return moved
