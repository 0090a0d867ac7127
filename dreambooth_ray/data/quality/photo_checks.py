"""Checks of one photograph by itself."""

from dreambooth_ray.data.quality.measured_photo import MeasuredPhoto
from dreambooth_ray.data.quality.quality_issue import QualityIssue, Severity

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


def check_photo(photo: MeasuredPhoto, side_px: int) -> list[QualityIssue]:
    """The issues of one photograph by itself."""
    return [
        issue
        for issue in (
            _check_resolution(photo, side_px),
            _check_blur(photo) or _check_shake(photo),
            _check_darkness(photo) or _check_black_point(photo) or _check_highlights(photo),
            _check_noise(photo),
            _check_subject_too_small(photo),
            _check_bars(photo),
            _report_mask_error(photo),
        )
        if issue
    ]


def _build_issue(
    photo: MeasuredPhoto,
    check: str,
    severity: Severity,
    value: float,
    bound: float,
    sentence: str,
    measure: str,
    region: str = "in the whole frame",
) -> QualityIssue:
    photo_names = (photo.name,)
    return QualityIssue(
        check, severity, photo_names, round(value, 3), bound, sentence, measure, region
    )


def _check_resolution(photo: MeasuredPhoto, side_px: int) -> QualityIssue | None:
    short_side_px = min(photo.width_px, photo.height_px)
    if short_side_px >= side_px:
        return None
    return _build_issue(
        photo, "resolution", "fault" if short_side_px < side_px / 2 else "warning",
        short_side_px, side_px,
        f"{photo.name} is {photo.width_px}x{photo.height_px} px and would be enlarged to "
        f"{side_px} px; what it lacks in detail the model learns as softness. Use a larger one.",
        "short side, px",
    )  # fmt: skip


def _check_blur(photo: MeasuredPhoto) -> QualityIssue | None:
    subject_sharpness = photo.sharpness.subject
    if subject_sharpness >= SHARP:
        return None
    return _build_issue(
        photo, "blur", "fault" if subject_sharpness < BLURRED else "warning",
        subject_sharpness, SHARP,
        f"{photo.name} is blurred where its subject is; the model would learn the blur. "
        "Take it out, or a sharper one in its place.",
        "steepness of edges, 1/px", photo.region.describe(),
    )  # fmt: skip


def _check_shake(photo: MeasuredPhoto) -> QualityIssue | None:
    sharpness_evenness = photo.sharpness.evenness
    if sharpness_evenness >= MIN_EVENNESS:
        return None
    return _build_issue(
        photo, "blur", "warning", sharpness_evenness, MIN_EVENNESS,
        f"{photo.name} is blurred in one direction: the camera moved. Take it out, or a sharper "
        "one in its place.",
        "steepness of edges, the softest direction over the other",
    )  # fmt: skip


def _check_darkness(photo: MeasuredPhoto) -> QualityIssue | None:
    subject_brightness = photo.exposure.subject_bright
    whole_image_brightness = photo.exposure.frame_bright
    measure_name = "95th percentile of grey"
    if whole_image_brightness < FRAME_DARK[0]:
        measured_value, threshold, region_text = (
            whole_image_brightness,
            FRAME_DARK[0],
            "in the whole frame",
        )
    elif subject_brightness < SUBJECT_DARK[0]:
        measured_value, threshold, region_text = (
            subject_brightness,
            SUBJECT_DARK[0],
            photo.region.describe(),
        )
    elif subject_brightness < SUBJECT_DARK[1] and whole_image_brightness < FRAME_DARK[1]:
        measured_value, threshold, region_text = (
            subject_brightness,
            SUBJECT_DARK[1],
            photo.region.describe(),
        )
        measure_name += f" ({whole_image_brightness:.0f} in the frame, bound {FRAME_DARK[1]:g})"
    else:
        return None
    return _build_issue(
        photo, "exposure", "warning", measured_value, threshold,
        f"{photo.name} is so dark that hardly anything of the subject is lighter than black; its "
        "own colours are lost. Brighten or replace it.",
        measure_name, region_text,
    )  # fmt: skip


def _check_black_point(photo: MeasuredPhoto) -> QualityIssue | None:
    darkest_grey = photo.exposure.frame_dark
    if darkest_grey <= MAX_BLACK_POINT:
        return None
    return _build_issue(
        photo, "exposure", "warning", darkest_grey, MAX_BLACK_POINT,
        f"{photo.name} is washed out: even its darkest parts are light. Darken or replace it.",
        "1st percentile of grey",
    )  # fmt: skip


def _check_highlights(photo: MeasuredPhoto) -> QualityIssue | None:
    exposure = photo.exposure
    subject_region_text = photo.region.describe()
    if exposure.subject_clipped > MAX_SUBJECT_CLIPPED:
        measured_value, threshold, region_text = (
            exposure.subject_clipped,
            MAX_SUBJECT_CLIPPED,
            subject_region_text,
        )
        measure_name = "share with two colours at their end"
    elif (
        exposure.subject_touched > MAX_SUBJECT_TOUCHED
        and exposure.frame_clipped > MAX_FRAME_CLIPPED
    ):
        measured_value, threshold, region_text = (
            exposure.subject_touched,
            MAX_SUBJECT_TOUCHED,
            subject_region_text,
        )
        measure_name = (
            f"share with a colour at its end ({exposure.frame_clipped:.2f} of the frame with two, "
            f"bound {MAX_FRAME_CLIPPED:g})"
        )
    elif exposure.ragged > MAX_RAGGED:
        measured_value, threshold, region_text = exposure.ragged, MAX_RAGGED, "in the whole frame"
        measure_name = "share of tiles with parts at their end"
    else:
        return None
    return _build_issue(
        photo, "exposure", "warning", measured_value, threshold,
        f"{photo.name} is overexposed: light parts have become white, and the subject's own "
        "colours are lost. Darken or replace it.",
        measure_name, region_text,
    )  # fmt: skip


def _check_noise(photo: MeasuredPhoto) -> QualityIssue | None:
    if photo.noise <= MAX_NOISE:
        return None
    return _build_issue(
        photo, "noise", "warning", photo.noise, MAX_NOISE,
        f"{photo.name} is grainy, also where it should be smooth; the model would learn the "
        "grain. Use one taken in more light.",
        "grain between colours, of 255", "in the smoothest fifth of the frame",
    )  # fmt: skip


def _check_subject_too_small(photo: MeasuredPhoto) -> QualityIssue | None:
    colour_extent, detail_extent = photo.extent
    region_text = "in the whole frame"
    if photo.region.source in ("mask", "proposed mask"):
        if photo.region.frame_share >= MIN_MASK_SHARE:
            return None
        measured_value, threshold, measure_name, region_text = (
            photo.region.frame_share,
            MIN_MASK_SHARE,
            "share",
            "of its mask",
        )
    elif colour_extent < MIN_EXTENT_BY_COLOUR:
        measured_value, threshold, measure_name = (
            colour_extent,
            MIN_EXTENT_BY_COLOUR,
            "spread of unlike colours",
        )
    elif detail_extent < MIN_EXTENT_BY_DETAIL:
        measured_value, threshold, measure_name = (
            detail_extent,
            MIN_EXTENT_BY_DETAIL,
            "spread of steep changes",
        )
    elif detail_extent < RATIO_BELOW_EXTENT and detail_extent < MIN_DETAIL_RATIO * colour_extent:
        measured_value, threshold = detail_extent / colour_extent, MIN_DETAIL_RATIO
        measure_name = "spread of steep changes, of that of unlike colours"
    else:
        return None
    return _build_issue(
        photo, "subject size", "warning", measured_value, threshold,
        f"{photo.name}: what stands out covers a small part of the frame; the model would learn "
        "the surroundings instead. Crop it closer.",
        measure_name, region_text,
    )  # fmt: skip


def _check_bars(photo: MeasuredPhoto) -> QualityIssue | None:
    border_bar_share = photo.bars.facing_bar_width_share
    if border_bar_share < MIN_BAR:
        return None
    return _build_issue(
        photo, "bars", "warning", border_bar_share, MIN_BAR,
        f"{photo.name} has bars or a frame at its sides; the model would draw them. Crop them "
        "off.",
        "width of a bar, of the frame", "at facing sides",
    )  # fmt: skip


def _report_mask_error(photo: MeasuredPhoto) -> QualityIssue | None:
    if not photo.mask_error:
        return None
    return QualityIssue(
        "mask", "fault", (photo.name,), 1, 0,
        f"The mask of {photo.name} is not used: {photo.mask_error}.", "masks that are refused",
    )  # fmt: skip
