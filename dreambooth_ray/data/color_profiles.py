"""Colours by an image's embedded ICC profile, to sRGB, which models are trained on."""

import io
from functools import cache

from PIL import Image, ImageCms

# A transform that changes no probe by more than this is sRGB's own: the pixels stay as they are.
_SAME = 2
_LEVELS = (0, 64, 128, 192, 255)
# Colours that profiles are embedded for; others have been numbers without a space of their own.
_MODES = ("RGB", "RGBA", "L", "LA", "CMYK")


def convert_to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB: by its profile where it has one of another space, else as it is.

    Transparency stays. A profile that can't be read is passed over, as viewers do.
    """
    profile_bytes = image.info.get("icc_profile")
    if not profile_bytes or image.mode not in _MODES:
        return image
    has_alpha = image.mode in ("RGBA", "LA")
    color_mode = {"RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode)
    try:
        srgb_transform = _build_srgb_transform(profile_bytes, color_mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    if srgb_transform is None:
        return image
    converted = ImageCms.applyTransform(image.convert(color_mode), srgb_transform)
    if converted is None:
        return image
    if has_alpha:
        converted.putalpha(image.getchannel("A"))
    converted.info = {k: v for k, v in image.info.items() if k != "icc_profile"}
    return converted


@cache
def _build_srgb_transform(profile_bytes: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where that changes nothing that can be seen."""
    icc_profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
    srgb_transform = ImageCms.buildTransform(
        icc_profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode != "RGB":
        return srgb_transform
    probe_image = Image.new("RGB", (len(_LEVELS) ** 2, len(_LEVELS)))
    probe_image.putdata([(r, g, b) for b in _LEVELS for g in _LEVELS for r in _LEVELS])
    converted = ImageCms.applyTransform(probe_image, srgb_transform)
    if converted is None:
        return srgb_transform
    channel_value_pairs = zip(probe_image.tobytes(), converted.tobytes(), strict=True)
    return srgb_transform if max(abs(a - b) for a, b in channel_value_pairs) > _SAME else None


def reduce_to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as "L", where Pillow takes all above 255 for white; others as they are."""
    if image.mode not in ("I;16", "I;16L", "I;16B", "I"):
        return image
    return image.point(lambda value: value / 256).convert("L")
