import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_ray.data.photographs import crop_square, find_photographs, read_photograph
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


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / "cut.jpg")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.jpg is damaged"):
        read_photograph(path)


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
    with pytest.raises(DataError, match="its 1 files have other endings"):
        find_photographs(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        find_photographs(tmp_path / "nowhere")


def test_more_than_the_most_is_refused(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.PNG").write_bytes(b"")
    assert [p.name for p in find_photographs(tmp_path)] == ["0.PNG", "1.PNG", "2.PNG"]
    with pytest.raises(DataError, match="holds 3 photographs; at most 2"):
        find_photographs(tmp_path, max_count=2)


def test_square_takes_the_middle() -> None:
    image = Image.new("RGB", (60, 20), (0, 0, 0))
    image.paste((255, 255, 255), (20, 0, 40, 20))
    assert all(low > 230 for low, _ in crop_square(image, 10).getextrema())
