"""Uploaded pictures read within bounds, drawn ones written with their receipts. No torch."""

import hashlib
import io
import json
import warnings
from typing import Literal

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from serve.api_errors import APIError
from serve.api_messages import Receipt
from serve.replica_messages import Pixels

Format = Literal["png", "jpeg", "webp"]
_READ = ("PNG", "JPEG", "WEBP")
_EXIF_DESCRIPTION = 0x010E


def read_upload(data: bytes, param: str, max_px: int) -> Image.Image:
    """The picture in an upload; its size is checked before a pixel is decoded.

    raises: Refusal naming `param`
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own warning of large pictures comes before our bound is asked.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=_READ)
        _check_pixels(picture, param, max_px)
        picture.load()
    except APIError:
        raise
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise APIError(
            400, "invalid_image", f"{param} is no picture that can be read; send PNG, JPEG or WebP",
            param=param,
        ) from error  # fmt: skip
    return picture


def _check_pixels(picture: Image.Image, param: str, max_px: int) -> None:
    if picture.width * picture.height > max_px:
        raise APIError(
            400, "image_too_large",
            f"{param} has {picture.width}x{picture.height} pixels and at most {max_px} are taken; "
            "send it smaller",
            param=param,
        )  # fmt: skip
    if getattr(picture, "n_frames", 1) != 1:
        raise APIError(400, "invalid_image", f"{param} is animated; send one picture", param=param)


def start_pixels(data: bytes, size_px: tuple[int, int] | None, max_px: int) -> Pixels:
    """The `image` of an edit: RGB, at the size asked for."""
    picture = read_upload(data, "image", max_px).convert("RGB")
    if size_px is not None and picture.size != size_px:
        picture = picture.resize(size_px, Image.Resampling.LANCZOS)
    return Pixels.of(picture)


def mask_pixels(data: bytes, size_px: tuple[int, int], max_px: int) -> Pixels:
    """The `mask` of an edit: L, white where the picture is drawn anew.

    With an alpha channel, transparent is drawn anew, as OpenAI's API has it; without one, white.
    """
    picture = read_upload(data, "mask", max_px)
    if "A" in picture.getbands() or "transparency" in picture.info:
        alpha = picture.convert("RGBA").getchannel("A")
        picture = alpha.point(lambda v: 0 if v >= 128 else 255)
    else:
        picture = picture.convert("L").point(lambda v: 255 if v >= 128 else 0)
    return Pixels.of(picture.resize(size_px, Image.Resampling.NEAREST))


def sha256(pixels: Pixels | None) -> str | None:
    """Of a picture's bytes."""
    return None if pixels is None else hashlib.sha256(pixels.data).hexdigest()


def encode(
    pixels: Pixels, receipt: Receipt | None, output_format: Format, quality: int = 100
) -> bytes:
    """A picture file with its receipt inside: PNG text `receipt`, EXIF description elsewhere."""
    picture, out = pixels.picture(), io.BytesIO()
    # ASCII: EXIF has no other letters.
    text = None if receipt is None else json.dumps(receipt.model_dump(exclude_none=True))
    if output_format == "png":
        info = PngInfo()
        if text is not None:
            info.add_itxt("receipt", text)
        picture.save(out, "PNG", pnginfo=info)
        return out.getvalue()
    exif = Image.Exif()
    if text is not None:
        exif[_EXIF_DESCRIPTION] = text
    picture.save(out, output_format.upper(), quality=max(1, quality), exif=exif)
    return out.getvalue()


def read_receipt(data: bytes) -> Receipt | None:
    """The receipt in a PNG that `encode` wrote."""
    text = Image.open(io.BytesIO(data), formats=("PNG",)).info.get("receipt")
    return None if text is None else Receipt.model_validate_json(str(text))
