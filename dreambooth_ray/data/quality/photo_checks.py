"""Checks of one photograph by itself, and the measurements they need."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth_ray.data.photographs import read_photograph
from dreambooth_ray.data.quality import measurements
from dreambooth_ray.data.quality.issue import QualityIssue, Severity

# Set on the DreamBench photographs, whole and with planted faults.
SHARP, BLURRED = 0.45, 0.25
DARK, BRIGHT = 60.0, 200.0
MIN_EXTENT_BY_COLOUR, MIN_EXTENT_BY_DETAIL = 0.045, 0.15
MIN_BAR = 0.03


@dataclass(frozen=True)
class Photo:
    """One photograph and what was measured on it.

    extent: its spread over the frame by colour and by detail, see `measurements.extents`
    """

    name: str
    image: Image.Image
    width_px: int
    height_px: int
    sharpness: float
    brightness: tuple[float, float]
    extent: tuple[float, float]
    bars_px: tuple[int, int, int, int]
    hash: int


def measure_photo(path: Path) -> Photo:
    """Read and measure; raises DataError if it can't be read."""
    image = read_photograph(path)
    return Photo(
        name=path.name,
        image=image,
        width_px=image.width,
        height_px=image.height,
        sharpness=measurements.sharpness(image),
        brightness=measurements.brightness(image),
        extent=measurements.extents(image),
        bars_px=measurements.bars(image),
        hash=measurements.perceptual_hash(image),
    )


def check_photo(photo: Photo, side_px: int) -> list[QualityIssue]:
    """The issues of one photograph by itself."""
    return [
        issue
        for issue in (
            _check_resolution(photo, side_px),
            _check_blur(photo),
            _check_exposure(photo),
            _check_extent(photo),
            _check_bars(photo),
        )
        if issue
    ]


def _check_resolution(photo: Photo, side_px: int) -> QualityIssue | None:
    side = min(photo.width_px, photo.height_px)
    if side >= side_px:
        return None
    return QualityIssue(
        "resolution", "fault" if side < side_px / 2 else "warning", (photo.name,), side, side_px,
        f"{photo.name} is {photo.width_px}x{photo.height_px} px and would be enlarged to "
        f"{side_px} px; what it lacks in detail the model learns as softness. Use a larger one.",
    )  # fmt: skip


def _check_blur(photo: Photo) -> QualityIssue | None:
    if photo.sharpness >= SHARP:
        return None
    severity: Severity = "fault" if photo.sharpness < BLURRED else "warning"
    return QualityIssue(
        "blur", severity, (photo.name,), round(photo.sharpness, 3), SHARP,
        f"{photo.name} is blurred, also where it is sharpest; the model would learn the blur. "
        "Take it out, or a sharper one in its place.",
    )  # fmt: skip


def _check_exposure(photo: Photo) -> QualityIssue | None:
    low, high = photo.brightness
    if high >= DARK and low <= BRIGHT:
        return None
    is_dark = high < DARK
    value, bound = (high, DARK) if is_dark else (low, BRIGHT)
    how = "so dark that nine tenths of it are nearly black" if is_dark else "almost all white"
    return QualityIssue(
        "exposure", "warning", (photo.name,), round(value, 1), bound,
        f"{photo.name} is {how}; the subject's own colours are lost in it. Brighten or replace it.",
    )  # fmt: skip


def _check_extent(photo: Photo) -> QualityIssue | None:
    colour, detail = photo.extent
    if colour >= MIN_EXTENT_BY_COLOUR and detail >= MIN_EXTENT_BY_DETAIL:
        return None
    by_colour = colour < MIN_EXTENT_BY_COLOUR
    value, bound = (colour, MIN_EXTENT_BY_COLOUR) if by_colour else (detail, MIN_EXTENT_BY_DETAIL)
    return QualityIssue(
        "subject size", "warning", (photo.name,), round(value, 3), bound,
        f"{photo.name}: what stands out covers a small part of the frame; the model would learn "
        "the surroundings instead. Crop it closer.",
    )  # fmt: skip


def _check_bars(photo: Photo) -> QualityIssue | None:
    left_px, top_px, right_px, bottom_px = photo.bars_px
    across, down = min(left_px, right_px) / photo.width_px, min(top_px, bottom_px) / photo.height_px
    share = max(across, down)
    if share < MIN_BAR:
        return None
    return QualityIssue(
        "bars", "warning", (photo.name,), round(share, 3), MIN_BAR,
        f"{photo.name} has black bars at its sides; the model would draw them. Crop them off.",
    )  # fmt: skip
