"""Whether two photographs are one: cut, scaled, mirrored, recoloured or saved again.

The middle of each is looked for in the other, in several sizes and mirrored, by normalised
cross-correlation (Lewis 1995). The best places are refined until the two lie on each other; then
they are compared block by block. Two poses before one backdrop agree in the backdrop alone.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageOps

from dreambooth_ray.data.quality.subject_region import SubjectRegion

_GRID_PX, _KEPT_SIDE_PX = 64, 384
_CORE_MARGIN = 0.2
_SIZES = tuple(1.08**-k for k in range(10))
_NUM_PLACES = 4
_MIN_CORRELATION, _MIN_REFINED = 0.65, 0.85
# Short side of the middle at each turn of the refinement, and steps there, of a pixel at 48.
_COARSE, _FINE = (48, (1.0, 0.5)), ((96, (0.6, 0.3)), (144, (0.3, 0.15)))
_BLOCK_PX, _STRIDE_PX, _SHIFT_PX, _OVERLAP_SIDE_PX = 24, 12, 2, 192
_MIN_BLOCK_DEVIATION, _MIN_BLOCK_CORRELATION = 6.0, 0.6
_MIN_BLOCKS, _MIN_SUBJECT_BLOCKS = 12, 6


@dataclass(frozen=True)
class Likeness:
    """How much of two photographs is alike where they lie on each other.

    share: busy blocks that agree, 0 to 1: of the overlap or of the subject, whichever agrees less
    """

    share: float
    is_mirrored: bool


@dataclass(frozen=True)
class _Place:
    """A box in one image where the middle of another was found; pixels of its kept copy."""

    correlation: float
    box: tuple[float, float, float, float]  # left, top, width, height
    is_mirrored: bool


class CopySignature:
    """What a photograph is compared by: grey copies and their spectra.

    image: inside its bars; region: the subject in it, of any size
    """

    def __init__(self, image: Image.Image, region: SubjectRegion) -> None:
        scale = min(1.0, _KEPT_SIDE_PX / min(image.size))
        size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
        self.grey = image.convert("L").resize(size, Image.Resampling.BOX)
        self.subject = Image.fromarray(region.inside.astype(np.uint8) * 255)
        factor = _GRID_PX / max(size)
        self.grid_px_size = max(4, round(size[0] * factor)), max(4, round(size[1] * factor))
        # Pixels of the kept copy in a pixel of the grid.
        self.grid_step = max(size) / _GRID_PX

    @property
    def core_box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the middle that is looked for elsewhere."""
        width, height = self.grey.size
        low, high = _CORE_MARGIN, 1 - _CORE_MARGIN
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


def compare_photographs(one: CopySignature, other: CopySignature) -> Likeness | None:
    """How alike two are where one lies on the other; None if it lies nowhere."""
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
    if place.correlation < _MIN_REFINED:
        return None
    return _compare_blocks(found, ground, place)


def _sum_areas(plane: np.ndarray) -> np.ndarray:
    return np.pad(plane.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _find_places(found: CopySignature, ground: CopySignature) -> list[_Place]:
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
        places.append(_Place(float(normalized.max()), box, is_mirrored))
    return places


def _refine(
    found: CopySignature,
    ground: CopySignature,
    place: _Place,
    side_px: int,
    steps: tuple[float, ...],
) -> _Place:
    """The place moved and scaled by steps for as long as the two agree better."""
    left, top, right, bottom = found.core_box
    scale = side_px / min(right - left, bottom - top)
    size = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
    core = found.grey.resize(size, Image.Resampling.BILINEAR, box=found.core_box)
    target = np.asarray(ImageOps.mirror(core) if place.is_mirrored else core, np.float32)

    def correlate(box: tuple[float, float, float, float]) -> float:
        clipped = _clip(box, ground.grey.size)
        if clipped is None:
            return -1.0
        patch = ground.grey.resize(size, Image.Resampling.BILINEAR, box=clipped)
        return float(_correlate(target.ravel(), np.asarray(patch, np.float32).ravel()))

    box, best = place.box, correlate(place.box)
    for step in (s * min(ground.grey.size) / 48 for s in steps):
        for _ in range(6):
            moves = _move_box(box, step)
            scores = [correlate(b) for b in moves]
            index = int(np.argmax(scores))
            if scores[index] <= best:
                break
            best, box = scores[index], moves[index]
    return _Place(best, box, place.is_mirrored)


def _move_box(
    box: tuple[float, float, float, float], step: float
) -> list[tuple[float, float, float, float]]:
    left, top, width, height = box
    moved = [
        (left + dx * step, top + dy * step, width, height)
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    for grow in (step, -step):
        higher = grow * height / width
        moved.append((left - grow / 2, top - higher / 2, width + grow, height + higher))
    return moved


def _clip(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom inside an image; None if hardly anything is left."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(size[0]), box[0] + box[2]), min(float(size[1]), box[1] + box[3])
    return None if min(right - left, bottom - top) < 8 else (left, top, right, bottom)


def _correlate(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Normalised correlation along the last axis."""
    one = one - one.mean(axis=-1, keepdims=True)
    other = other - other.mean(axis=-1, keepdims=True)
    energy = (one**2).sum(axis=-1) * (other**2).sum(axis=-1)
    correlation: np.ndarray = (one * other).sum(axis=-1) / np.sqrt(energy + 1e-3)
    return correlation


def _compare_blocks(found: CopySignature, ground: CopySignature, place: _Place) -> Likeness | None:
    """All of the overlap, not its middle alone, block by block, each moved by 2 px at most."""
    grey, subject = found.grey, found.subject
    if place.is_mirrored:
        grey, subject = ImageOps.mirror(grey), ImageOps.mirror(subject)
    factor = place.box[2] / (0.6 * grey.width), place.box[3] / (0.6 * grey.height)
    frame_left = place.box[0] - _CORE_MARGIN * grey.width * factor[0]
    frame_top = place.box[1] - _CORE_MARGIN * grey.height * factor[1]
    frame = (frame_left, frame_top, grey.width * factor[0], grey.height * factor[1])
    overlap = _clip(frame, ground.grey.size)
    if overlap is None:
        return None
    own = (
        (overlap[0] - frame_left) / frame[2],
        (overlap[1] - frame_top) / frame[3],
        (overlap[2] - frame_left) / frame[2],
        (overlap[3] - frame_top) / frame[3],
    )
    width, height = overlap[2] - overlap[0], overlap[3] - overlap[1]
    scale = _OVERLAP_SIDE_PX / min(width, height)
    size = round(width * scale), round(height * scale)
    one = _cut(grey, own, size)
    patch = ground.grey.resize(size, Image.Resampling.BILINEAR, box=overlap)
    agreement, is_busy = _correlate_blocks(one, np.asarray(patch, np.float32))
    in_subject = _split_blocks(_cut(subject, own, size), 0, 0).mean(axis=-1) > 127
    return _likeness(agreement, is_busy, in_subject & is_busy, place.is_mirrored)


def _cut(
    image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """(H, W) float32 of a box in shares of the frame, in a new size."""
    left, right = (max(0.0, min(1.0, share)) * image.width for share in (box[0], box[2]))
    top, bottom = (max(0.0, min(1.0, share)) * image.height for share in (box[1], box[3]))
    part = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(part, np.float32)


def _correlate_blocks(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks,) best correlation over small shifts, and whether either block shows anything."""
    own = _split_blocks(one, 0, 0)
    best = np.full(len(own), -1.0)
    for down in (-_SHIFT_PX, 0, _SHIFT_PX):
        for across in (-_SHIFT_PX, 0, _SHIFT_PX):
            best = np.maximum(best, _correlate(own, _split_blocks(other, down, across)))
    deviation = np.maximum(own.std(axis=-1), _split_blocks(other, 0, 0).std(axis=-1))
    return best, deviation >= _MIN_BLOCK_DEVIATION


def _split_blocks(plane: np.ndarray, down: int, across: int) -> np.ndarray:
    """(blocks, 24 * 24) of a plane moved by so many pixels, without its rim."""
    rim, (height, width) = _SHIFT_PX, plane.shape
    inner = plane[rim + down : height - rim + down, rim + across : width - rim + across]
    windows = np.lib.stride_tricks.sliding_window_view(inner, (_BLOCK_PX, _BLOCK_PX))
    return windows[::_STRIDE_PX, ::_STRIDE_PX].reshape(-1, _BLOCK_PX * _BLOCK_PX)


def _likeness(
    agreement: np.ndarray, is_busy: np.ndarray, is_subject: np.ndarray, is_mirrored: bool
) -> Likeness | None:
    if is_busy.sum() < _MIN_BLOCKS:
        return None
    does_agree = agreement >= _MIN_BLOCK_CORRELATION
    share = float(does_agree[is_busy].mean())
    if is_subject.sum() >= _MIN_SUBJECT_BLOCKS:
        share = min(share, float(does_agree[is_subject].mean()))
    return Likeness(share, is_mirrored)
