"""Checks of one photograph by itself."""

from dreambooth_ray.data.quality.issue import QualityIssue, Severity
from dreambooth_ray.data.quality.photo import Photo

# Set on 16 DreamBench subjects, whole and with planted faults, and counted on 14 others:
# benchmarks/doctor_accuracy.py.
SHARP, BLURRED, MIN_EVENNESS = 0.21, 0.14, 0.855
SUBJECT_DARK, FRAME_DARK = (50.0, 85.0), (90.0, 100.0)
MAX_SUBJECT_CLIPPED, MAX_FRAME_CLIPPED, MAX_SUBJECT_TOUCHED, MAX_RAGGED = 0.35, 0.2, 0.15, 0.17
MAX_BLACK_POINT = 160.0
MAX_NOISE = 2.0
MIN_EXTENT_BY_COLOUR, MIN_EXTENT_BY_DETAIL = 0.045, 0.11
MIN_DETAIL_RATIO, RATIO_BELOW_EXTENT = 0.75, 0.2
MIN_MASK_SHARE = 0.03
MIN_BAR = 0.03


def check_photo(photo: Photo, side_px: int) -> list[QualityIssue]:
    """The issues of one photograph by itself."""
    return [
        issue
        for issue in (
            _check_resolution(photo, side_px),
            _check_blur(photo) or _check_shake(photo),
            _check_darkness(photo) or _check_black_point(photo) or _check_highlights(photo),
            _check_noise(photo),
            _check_extent(photo),
            _check_bars(photo),
            _check_mask(photo),
        )
        if issue
    ]


def _issue(
    photo: Photo,
    check: str,
    severity: Severity,
    value: float,
    bound: float,
    sentence: str,
    measure: str,
    region: str = "in the whole frame",
) -> QualityIssue:
    names = (photo.name,)
    return QualityIssue(check, severity, names, round(value, 3), bound, sentence, measure, region)


def _check_resolution(photo: Photo, side_px: int) -> QualityIssue | None:
    side = min(photo.width_px, photo.height_px)
    if side >= side_px:
        return None
    return _issue(
        photo, "resolution", "fault" if side < side_px / 2 else "warning", side, side_px,
        f"{photo.name} is {photo.width_px}x{photo.height_px} px and would be enlarged to "
        f"{side_px} px; what it lacks in detail the model learns as softness. Use a larger one.",
        "short side, px",
    )  # fmt: skip


def _check_blur(photo: Photo) -> QualityIssue | None:
    value = photo.sharpness.subject
    if value >= SHARP:
        return None
    return _issue(
        photo, "blur", "fault" if value < BLURRED else "warning", value, SHARP,
        f"{photo.name} is blurred where its subject is; the model would learn the blur. "
        "Take it out, or a sharper one in its place.",
        "steepness of edges, 1/px", photo.region.describe(),
    )  # fmt: skip


def _check_shake(photo: Photo) -> QualityIssue | None:
    value = photo.sharpness.evenness
    if value >= MIN_EVENNESS:
        return None
    return _issue(
        photo, "blur", "warning", value, MIN_EVENNESS,
        f"{photo.name} is blurred in one direction: the camera moved. Take it out, or a sharper "
        "one in its place.",
        "steepness of edges, the softest direction over the other",
    )  # fmt: skip


def _check_darkness(photo: Photo) -> QualityIssue | None:
    subject, frame = photo.exposure.subject_bright, photo.exposure.frame_bright
    measure = "95th percentile of grey"
    if frame < FRAME_DARK[0]:
        value, bound, region = frame, FRAME_DARK[0], "in the whole frame"
    elif subject < SUBJECT_DARK[0]:
        value, bound, region = subject, SUBJECT_DARK[0], photo.region.describe()
    elif subject < SUBJECT_DARK[1] and frame < FRAME_DARK[1]:
        value, bound, region = subject, SUBJECT_DARK[1], photo.region.describe()
        measure += f" ({frame:.0f} in the frame, bound {FRAME_DARK[1]:g})"
    else:
        return None
    return _issue(
        photo, "exposure", "warning", value, bound,
        f"{photo.name} is so dark that hardly anything of the subject is lighter than black; its "
        "own colours are lost. Brighten or replace it.",
        measure, region,
    )  # fmt: skip


def _check_black_point(photo: Photo) -> QualityIssue | None:
    value = photo.exposure.frame_dark
    if value <= MAX_BLACK_POINT:
        return None
    return _issue(
        photo, "exposure", "warning", value, MAX_BLACK_POINT,
        f"{photo.name} is washed out: even its darkest parts are light. Darken or replace it.",
        "1st percentile of grey",
    )  # fmt: skip


def _check_highlights(photo: Photo) -> QualityIssue | None:
    exposure = photo.exposure
    subject = photo.region.describe()
    if exposure.subject_clipped > MAX_SUBJECT_CLIPPED:
        value, bound, region = exposure.subject_clipped, MAX_SUBJECT_CLIPPED, subject
        measure = "share with two colours at their end"
    elif (
        exposure.subject_touched > MAX_SUBJECT_TOUCHED
        and exposure.frame_clipped > MAX_FRAME_CLIPPED
    ):
        value, bound, region = exposure.subject_touched, MAX_SUBJECT_TOUCHED, subject
        measure = (
            f"share with a colour at its end ({exposure.frame_clipped:.2f} of the frame with two, "
            f"bound {MAX_FRAME_CLIPPED:g})"
        )
    elif exposure.ragged > MAX_RAGGED:
        value, bound, region = exposure.ragged, MAX_RAGGED, "in the whole frame"
        measure = "share of tiles with parts at their end"
    else:
        return None
    return _issue(
        photo, "exposure", "warning", value, bound,
        f"{photo.name} is overexposed: light parts have become white, and the subject's own "
        "colours are lost. Darken or replace it.",
        measure, region,
    )  # fmt: skip


def _check_noise(photo: Photo) -> QualityIssue | None:
    if photo.noise <= MAX_NOISE:
        return None
    return _issue(
        photo, "noise", "warning", photo.noise, MAX_NOISE,
        f"{photo.name} is grainy, also where it should be smooth; the model would learn the "
        "grain. Use one taken in more light.",
        "grain between colours, of 255", "in the smoothest fifth of the frame",
    )  # fmt: skip


def _check_extent(photo: Photo) -> QualityIssue | None:
    colour, detail = photo.extent
    region = "in the whole frame"
    if photo.region.source in ("mask", "proposed mask"):
        if photo.region.share >= MIN_MASK_SHARE:
            return None
        value, bound, measure, region = photo.region.share, MIN_MASK_SHARE, "share", "of its mask"
    elif colour < MIN_EXTENT_BY_COLOUR:
        value, bound, measure = colour, MIN_EXTENT_BY_COLOUR, "spread of unlike colours"
    elif detail < MIN_EXTENT_BY_DETAIL:
        value, bound, measure = detail, MIN_EXTENT_BY_DETAIL, "spread of steep changes"
    elif detail < RATIO_BELOW_EXTENT and detail < MIN_DETAIL_RATIO * colour:
        value, bound = detail / colour, MIN_DETAIL_RATIO
        measure = "spread of steep changes, of that of unlike colours"
    else:
        return None
    return _issue(
        photo, "subject size", "warning", value, bound,
        f"{photo.name}: what stands out covers a small part of the frame; the model would learn "
        "the surroundings instead. Crop it closer.",
        measure, region,
    )  # fmt: skip


def _check_bars(photo: Photo) -> QualityIssue | None:
    share = photo.bars.share
    if share < MIN_BAR:
        return None
    return _issue(
        photo, "bars", "warning", share, MIN_BAR,
        f"{photo.name} has bars or a frame at its sides; the model would draw them. Crop them "
        "off.",
        "width of a bar, of the frame", "at facing sides",
    )  # fmt: skip


def _check_mask(photo: Photo) -> QualityIssue | None:
    if not photo.mask_error:
        return None
    return QualityIssue(
        "mask", "fault", (photo.name,), 1, 0,
        f"The mask of {photo.name} is not used: {photo.mask_error}.", "masks that are refused",
    )  # fmt: skip
