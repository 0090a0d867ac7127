"""Whether two images are one and the same to the eye, and whether one shows anything."""

import numpy as np
from PIL import Image

_SIDE = 16
_BLANK_SPREAD = 3.0


def compute_fingerprint(image: Image.Image) -> int:
    """256 bits: whether brightness rises between neighbours on a 17x16 copy (Krawetz's dHash)."""
    small_image = image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS)
    brightness_rises = np.diff(np.asarray(small_image, dtype=np.int16), axis=1) > 0
    return int.from_bytes(np.packbits(brightness_rises).tobytes(), "big")


def fingerprint_distance(one: int, other: int) -> int:
    """Bits in which two fingerprints differ, 0 to 256."""
    return (one ^ other).bit_count()


def is_blank_image(image: Image.Image) -> bool:
    """Whether an image is of one colour: all channels vary by less than 3 of 255."""
    channel_deviation = np.asarray(image.convert("RGB"), dtype=np.float32).std(axis=(0, 1))
    return bool((channel_deviation < _BLANK_SPREAD).all())
