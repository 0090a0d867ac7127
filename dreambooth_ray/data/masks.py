"""Masks of photographs: where the subject is. White is the subject, black what is around it."""

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dreambooth_ray.data.color_profiles import reduce_to_eight_bits
from dreambooth_ray.errors import DataError

MASK_SUFFIX = ".mask.png"
# What decoders and readers of metadata raise for damaged files; that of AVIF has none of its own.
DECODING_ERRORS = (
    OSError, ValueError, SyntaxError, RuntimeError, EOFError, LookupError, TypeError,
    ArithmeticError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
# Of 0 to 255: from here on a pixel counts as the subject's, in the checks alone.
_IS_SUBJECT = 128
# An inverted mask is white along its edges and not so in its middle.
_EDGE_SHARE, _INVERTED_EDGE, _INVERTED_MIDDLE = 0.05, 0.75, 0.5


def is_mask(path: Path) -> bool:
    """Whether a file is a mask by its name, and no photograph."""
    return path.name.lower().endswith(MASK_SUFFIX)


def find_mask(photograph: Path) -> Path | None:
    """The file `photo.mask.png` beside `photo.jpg`; letters' case matters only among several."""
    # Not asked for by its name: that may be longer than a file's can be.
    mask_file_name = f"{photograph.stem}{MASK_SUFFIX}"
    mask_paths = [
        p for p in photograph.parent.iterdir() if p.name.casefold() == mask_file_name.casefold()
    ]
    return min(
        (p for p in mask_paths if p.is_file()),
        key=lambda p: (p.name != mask_file_name, p),
        default=None,
    )


def read_mask(photograph: Path, size_px: tuple[int, int]) -> Image.Image | None:
    """The mask of a photograph, "L", as large: of its file, or its own transparency; else None.

    size_px: of the photograph, upright
    raises: DataError naming the file of a mask of another size, an empty or an inverted one
    """
    path = find_mask(photograph)
    mask = _read_mask_file(path) if path else _read_transparency(photograph)
    if mask is None:
        return None
    mask_name = str(path or f"the transparency of {photograph}")
    if mask.size != size_px:
        raise DataError(
            f"{mask_name} is {mask.width}x{mask.height} px, and its photograph is "
            f"{size_px[0]}x{size_px[1]} px; make both the same size"
        )
    refuse_empty_or_inverted_mask(mask, mask_name)
    return mask


def refuse_empty_or_inverted_mask(mask: Image.Image, name: str) -> None:
    """raises: DataError for a mask without subject, or one that shows what is around it"""
    subject_pixels = np.asarray(mask) >= _IS_SUBJECT
    if not subject_pixels.any():
        raise DataError(
            f"{name} is empty: nothing in it is white; paint the subject white, or remove the mask"
        )
    height, width = subject_pixels.shape
    edge_width_px = max(1, round(_EDGE_SHARE * min(height, width)))
    inner_area = subject_pixels[edge_width_px:-edge_width_px, edge_width_px:-edge_width_px]
    num_edge_pixels = subject_pixels.size - inner_area.size
    white_edge_share = (subject_pixels.sum() - inner_area.sum()) / num_edge_pixels
    middle_area = subject_pixels[
        height // 4 : height - height // 4, width // 4 : width - width // 4
    ]
    if white_edge_share > _INVERTED_EDGE and middle_area.mean() < _INVERTED_MIDDLE:
        raise DataError(
            f"{name} looks inverted: {white_edge_share:.0%} of its edge is white and "
            f"{middle_area.mean():.0%} "
            "of its middle; the subject is to be white and what is around it black"
        )


def darken_outside_mask(image: Image.Image, mask: Image.Image) -> Image.Image:
    """For people: an image, dark outside a mask of its size."""
    return Image.composite(image, image.point(lambda value: value // 4), mask)


def _read_mask_file(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return reduce_to_eight_bits(ImageOps.exif_transpose(image)).convert("L")
    except DECODING_ERRORS as error:
        raise DataError(f"{path} is not a readable mask ({error}); replace or remove it") from error


def _read_transparency(photograph: Path) -> Image.Image | None:
    """None where nothing of a photograph is transparent."""
    with warnings.catch_warnings(action="ignore"), Image.open(photograph) as image:
        if not image.has_transparency_data:
            return None
        alpha_channel = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    lowest_opacity, _ = alpha_channel.getextrema()
    return None if lowest_opacity == 255 else alpha_channel
