import io
import zlib

import pytest
from PIL import Image

from serve.api_errors import APIError
from serve.api_messages import Receipt
from serve.image_files import encode_image, read_mask, read_receipt, read_start_image, read_upload
from serve.replica_messages import Pixels
from tests.unit.data.test_photographs import make_display_p3

_RECEIPT = Receipt(
    model="toyworld", weights_sha256="0" * 64, prompt="a röbot\non the beach", negative_prompt="",
    seed=7, solver="ddim", num_inference_steps=25, guidance_scale=3.0, width=64, height=64,
)  # fmt: skip


def _file(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def test_a_receipt_comes_back_from_the_image(tile: Image.Image) -> None:
    data = encode_image(Pixels.from_pil_image(tile), _RECEIPT, "png")
    assert read_receipt(data) == _RECEIPT
    assert Image.open(io.BytesIO(data)).tobytes() == tile.tobytes()
    for form in ("jpeg", "webp"):
        data = encode_image(Pixels.from_pil_image(tile), _RECEIPT, form, 90)  # type: ignore[arg-type]
        exif = Image.open(io.BytesIO(data)).getexif()
        assert Receipt.model_validate_json(exif[0x010E]) == _RECEIPT


def _png_of(width: int, height: int) -> bytes:
    """A PNG that says it is large, and holds nothing: decoding it would be an error."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    chunk = b"IHDR" + head
    return (
        b"\x89PNG\r\n\x1a\n" + len(head).to_bytes(4, "big") + chunk
        + zlib.crc32(chunk).to_bytes(4, "big")
    )  # fmt: skip


@pytest.mark.parametrize("size", [(12000, 12000), (60000, 60000), (2**20, 8)])
def test_a_large_image_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(APIError) as refused:
        read_upload(_png_of(*size), "image", 2**22)
    assert (refused.value.status, refused.value.param) == (400, "image")


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"GIF89a" + bytes(50), b"\x89PNG\r\n\x1a\n", _png_of(8, 8)]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(APIError) as refused:
        read_upload(data, "mask", 2**22)
    assert (refused.value.code, refused.value.param) == ("invalid_image", "mask")


def test_masks_by_alpha_and_by_white(tile: Image.Image) -> None:
    clear = tile.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 32, 64))
    white = Image.new("L", (64, 64), 0)
    white.paste(255, (0, 0, 32, 64))
    by_alpha = read_mask(_file(clear), (64, 64), 2**22)
    assert by_alpha == read_mask(_file(white), (64, 64), 2**22)
    assert by_alpha.to_pil_image().getpixel((0, 0)) == 255
    assert by_alpha.to_pil_image().getpixel((63, 0)) == 0


def test_a_start_image_has_the_size_asked_for(tile: Image.Image) -> None:
    pixels = read_start_image(_file(tile.convert("RGBA")), (32, 16), 2**22)
    assert (pixels.mode, pixels.width_px, pixels.height_px) == ("RGB", 32, 16)
    assert read_start_image(_file(tile, "WEBP"), None, 2**22).width_px == 64


def test_a_start_image_is_read_as_viewers_show_it() -> None:
    image = Image.new("RGB", (60, 40), (202, 59, 51))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif, icc_profile=make_display_p3(), quality=95)
    pixels = read_start_image(out.getvalue(), None, 2**22)
    assert (pixels.width_px, pixels.height_px) == (40, 60)
    colour = pixels.to_pil_image().getpixel((20, 30))
    assert max(abs(a - b) for a, b in zip(colour, (220, 40, 40), strict=True)) <= 4
    clear = read_start_image(_file(Image.new("RGBA", (16, 16), (9, 9, 9, 0))), None, 2**22)
    assert clear.to_pil_image().getpixel((3, 3)) == (255, 255, 255)
