"""Uploaded images are read within bounds, generated ones written with receipts. No torch."""

import hashlib
import io
import json
import warnings
from typing import Literal

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from dreambooth_ray.data.photographs import show_as_rgb
from serve.api_errors import APIError
from serve.api_messages import Receipt
from serve.replica_messages import Pixels

OutputFormat = Literal["png", "jpeg", "webp"]
_READABLE_FORMATS = ("PNG", "JPEG", "WEBP")
_EXIF_DESCRIPTION = 0x010E


def read_upload(data: bytes, param: str, max_px: int) -> Image.Image:
    """The image in an upload; its size is checked before a pixel is decoded.

    raises: APIError naming `param`
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own warning of large images comes before our bound is asked.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_READABLE_FORMATS)
        _check_upload_size(image, param, max_px)
        image.load()
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
            400, "invalid_image", f"{param} is no image that can be read; send PNG, JPEG or WebP",
            param=param,
        ) from error  # fmt: skip
    return image


def _check_upload_size(image: Image.Image, param: str, max_px: int) -> None:
    if image.width * image.height > max_px:
        raise APIError(
            400, "image_too_large",
            f"{param} has {image.width}x{image.height} pixels and at most {max_px} are taken; "
            "send it smaller",
            param=param,
        )  # fmt: skip
    if getattr(image, "n_frames", 1) != 1:
        raise APIError(400, "invalid_image", f"{param} is animated; send one image", param=param)


def read_start_image(data: bytes, size_px: tuple[int, int] | None, max_px: int) -> Pixels:
    """The `image` of an edit as a viewer shows it: RGB, at the size asked for."""
    image = show_as_rgb(read_upload(data, "image", max_px))
    if size_px is not None and image.size != size_px:
        image = image.resize(size_px, Image.Resampling.LANCZOS)
    return Pixels.from_pil_image(image)


def read_mask(data: bytes, size_px: tuple[int, int], max_px: int) -> Pixels:
    """The `mask` of an edit: L, white where the image is sampled anew.

    With an alpha channel, transparent is sampled anew, as OpenAI's API has it; without one, white.
    """
    image = read_upload(data, "mask", max_px)
    if "A" in image.getbands() or "transparency" in image.info:
        alpha_channel = image.convert("RGBA").getchannel("A")
        image = alpha_channel.point(lambda v: 0 if v >= 128 else 255)
    else:
        image = image.convert("L").point(lambda v: 255 if v >= 128 else 0)
    return Pixels.from_pil_image(image.resize(size_px, Image.Resampling.NEAREST))


def hash_pixels(pixels: Pixels | None) -> str | None:
    """Of an image's bytes."""
    return None if pixels is None else hashlib.sha256(pixels.data).hexdigest()


def encode_image(
    pixels: Pixels, receipt: Receipt | None, output_format: OutputFormat, quality: int = 100
) -> bytes:
    """An image file with its receipt inside: PNG text `receipt`, EXIF description elsewhere."""
    image, buffer = pixels.to_pil_image(), io.BytesIO()
    # ASCII: EXIF has no other letters.
    receipt_json = None if receipt is None else json.dumps(receipt.model_dump(exclude_none=True))
    if output_format == "png":
        png_info = PngInfo()
        if receipt_json is not None:
            png_info.add_itxt("receipt", receipt_json)
        image.save(buffer, "PNG", pnginfo=png_info)
        return buffer.getvalue()
    exif = Image.Exif()
    if receipt_json is not None:
        exif[_EXIF_DESCRIPTION] = receipt_json
    image.save(buffer, output_format.upper(), quality=max(1, quality), exif=exif)
    return buffer.getvalue()


def read_receipt(data: bytes) -> Receipt | None:
    """The receipt in a PNG that `encode_image` wrote."""
    receipt_json = Image.open(io.BytesIO(data), formats=("PNG",)).info.get("receipt")
    return None if receipt_json is None else Receipt.model_validate_json(str(receipt_json))
