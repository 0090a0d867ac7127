import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from dreambooth_ray.data.photographs import (
    describe_unread,
    find_photographs,
    read_photograph,
)
from dreambooth_ray.errors import DataError


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_photograph(save(image, tmp_path / "a.jpg", exif=exif)).size == (20, 40)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert read_photograph(save(image, tmp_path / "a.png")).getpixel((3, 3)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([10, 20, 30] * 256)
    path = save(image, tmp_path / "a.png", transparency=0)
    assert read_photograph(path).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "rgb"),
    [
        ("L", 128, "png", (128, 128, 128)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (90, 255), "webp", (90, 90, 90)),
        ("I;16", 32768, "png", (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, mode: str, colour: object, ending: str, rgb: tuple[int, int, int]
) -> None:
    image = Image.new(mode, (32, 32), colour)  # type: ignore[arg-type]
    read = read_photograph(save(image, tmp_path / f"a.{ending}"))
    assert read.mode == "RGB"
    assert np.abs(np.array(read.getpixel((9, 9))) - np.array(rgb)).max() <= 3


def paint_corner() -> Image.Image:
    """60 x 40, red at the upper left."""
    image = Image.new("RGB", (60, 40), (40, 40, 220))
    image.paste((220, 40, 40), (0, 0, 30, 20))
    return image


@pytest.mark.parametrize("ending", ["heic", "heif", "avif", "tif", "TIFF", "bmp", "jfif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_formats_of_phones_and_scanners_are_read_upright(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    pillow_heif.register_heif_opener()
    kinds = {"heic": "HEIF", "heif": "HEIF", "jfif": "JPEG"}
    image, exif = paint_corner(), Image.Exif()
    exif[0x0112] = orientation
    # As bytes: only so does pillow_heif turn the image, as phones do, beside the tag.
    options = {} if ending == "bmp" else {"exif": exif.tobytes()}
    image.save(tmp_path / f"a.{ending}", kinds.get(ending), quality=95, **options)
    assert [p.name for p in find_photographs(tmp_path)] == [f"a.{ending}"]
    read = read_photograph(tmp_path / f"a.{ending}")
    turned = orientation == 6 and ending != "bmp"
    assert read.size == ((40, 60) if turned else (60, 40))
    corner = read.getpixel((30, 10) if turned else (10, 10))
    assert np.abs(np.array(corner) - np.array((220, 40, 40))).max() <= 12


def make_display_p3() -> bytes:
    """A matrix profile of Display P3's primaries with sRGB's curve, D50-adapted (ICC.1, v2)."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(map(fixed, values))

    levels = np.linspace(0, 1, 1024)
    linear = np.where(levels > 0.04045, ((levels + 0.055) / 1.055) ** 2.4, levels / 12.92)
    curve = struct.pack(">4s4xI1024H", b"curv", 1024, *np.round(linear * 65535).astype(int))
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 3) + b"P3\0" + bytes(78),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
        b"cprt": b"text" + bytes(4) + b"none\0",
    }  # fmt: skip
    table, body, offset = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += padded
    size = 128 + len(table) + len(body)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x", size, 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    header += fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return header + bytes(128 - len(header)) + table + body


@pytest.mark.parametrize("ending", ["png", "jpg", "heic", "tif"])
def test_wide_colours_are_converted_to_srgb(tmp_path: Path, ending: str) -> None:
    pillow_heif.register_heif_opener()
    # (220, 40, 40) of sRGB, in Display P3: by the matrices of both, through XYZ.
    image = Image.new("RGB", (32, 32), (202, 59, 51))
    path = tmp_path / f"a.{ending}"
    image.save(
        path, "HEIF" if ending == "heic" else None, icc_profile=make_display_p3(), quality=95
    )
    read = np.array(read_photograph(path).getpixel((9, 9)))
    assert np.abs(read - np.array((220, 40, 40))).max() <= 4


def test_pixels_of_srgb_stay_as_they_are(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc_profile in (profile, b"no profile"):
        path = save(Image.fromarray(noise), tmp_path / "a.png", icc_profile=icc_profile)
        assert np.array_equal(np.asarray(read_photograph(path)), noise)


def test_wide_colours_keep_their_transparency(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 32), (202, 59, 51, 0))
    image.paste((202, 59, 51, 255), (0, 0, 16, 32))
    read = read_photograph(save(image, tmp_path / "a.png", icc_profile=make_display_p3()))
    assert read.getpixel((20, 9)) == (255, 255, 255)
    assert np.abs(np.array(read.getpixel((9, 9))) - np.array((220, 40, 40))).max() <= 4


@pytest.mark.parametrize(
    "segment",
    [
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xde\xad" * 20,
        b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6' a='\xa8\xff'/>",
    ],
)
def test_damaged_metadata_are_passed_over_without_a_word(
    segment: bytes, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = save(Image.new("RGB", (32, 32)), tmp_path / "a.jpg")
    data = path.read_bytes()
    length = struct.pack(">H", len(segment) + 2)
    path.write_bytes(data[:2] + b"\xff\xe1" + length + segment + data[2:])
    assert read_photograph(path).size == (32, 32)
    assert not recwarn.list


def test_a_png_with_too_much_text_is_named(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("comment", "x" * 3_000_000, zip=True)
    path = save(Image.new("RGB", (32, 32)), tmp_path / "long.png", pnginfo=text)
    with pytest.raises(DataError, match=r"long\.png is (not a readable image|damaged)"):
        read_photograph(path)


def test_what_looks_like_a_photograph_and_is_not_read_is_named(tmp_path: Path) -> None:
    save(paint_corner(), tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a robot")
    (tmp_path / "notes.md").write_text("x")
    assert describe_unread(tmp_path) == ""
    save(paint_corner(), tmp_path / "b.gif")
    (tmp_path / "c.CR2").write_bytes(b"raw")
    (tmp_path / "d.mov").write_bytes(b"")
    paint_corner().save(tmp_path / "IMG_1", "PNG")
    (tmp_path / "f.png").symlink_to("moved.png")
    (tmp_path / "10_sks robot").mkdir()
    save(paint_corner(), tmp_path / "10_sks robot" / "e.png")
    assert describe_unread(tmp_path) == (
        "not used: IMG_1, b.gif, c.CR2, d.mov, the folder 10_sks robot/ with 1 photograph, f.png, "
        "a link to what is not there"
    )
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"no photograph \(not used: IMG_1.*10_sks robot/"):
        find_photographs(tmp_path)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / "cut.jpg")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.jpg is damaged"):
        read_photograph(path)


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".avif", "AVIF"), (".heic", "HEIF"), (".webp", "WEBP")]
)
def test_whatever_is_damaged_is_named(suffix: str, kind: str, tmp_path: Path) -> None:
    pillow_heif.register_heif_opener()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(Image.fromarray(noise), tmp_path / f"a{suffix}", format=kind, exif=exif)
    data, generator = path.read_bytes(), np.random.default_rng(1)
    num_named = 0
    for _ in range(150):
        damaged = bytearray(data)
        for position in generator.integers(0, min(len(data), 600), 4):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged[: generator.integers(20, len(data))])
        try:
            read_photograph(path)
        except DataError as error:
            num_named += path.name in str(error)
    assert num_named > 100


def test_text_in_a_jpg_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"a\.jpg is not a readable image"):
        read_photograph(tmp_path / "a.jpg")


def test_a_dot_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1x1 px"):
        read_photograph(save(Image.new("RGB", (1, 1)), tmp_path / "dot.png"))


@pytest.mark.parametrize("side", [10_001, 20_000])
def test_a_huge_image_is_refused_by_its_header_alone(tmp_path: Path, side: int) -> None:
    """The file has a header and no pixels: had anything been decoded, it would be 'damaged'."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    path = tmp_path / "huge.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    with pytest.raises(DataError, match=r"huge\.png.*reduce it first"):
        read_photograph(path)


def test_folders_without_photographs_say_what_is_in_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is empty"):
        find_photographs(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="its 1 file has another ending"):
        find_photographs(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        find_photographs(tmp_path / "nowhere")


def test_more_than_the_most_is_refused(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.PNG").write_bytes(b"")
    assert [p.name for p in find_photographs(tmp_path)] == ["0.PNG", "1.PNG", "2.PNG"]
    with pytest.raises(DataError, match="holds 3 photographs; at most 2"):
        find_photographs(tmp_path, max_count=2)
