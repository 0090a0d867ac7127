"""Reading people's photographs: every common format in, upright RGB out."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from dreambooth_ray.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MIN_SIDE_PX = 16
MAX_PIXELS = 100_000_000


def read_photograph(path: Path) -> Image.Image:
    """Decode one photograph: EXIF rotation applied, transparency laid on white, RGB.

    raises: DataError naming the file if it is truncated, not an image, below 16 px, or
        above 100 million pixels (checked before anything is decoded)
    """
    try:
        with warnings.catch_warnings():
            # Our own bound below is stricter, and its message is for people.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large to decode safely ({error}); reduce it first"
        ) from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(
            f"{path} is not a readable image ({error}); remove or replace it"
        ) from error
    with opened as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{path} is {width}x{height} px, above {MAX_PIXELS:,} pixels; reduce it first"
            )
        if min(width, height) < MIN_SIDE_PX:
            raise DataError(
                f"{path} is {width}x{height} px; each side needs at least {MIN_SIDE_PX} px"
            )
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}); replace or remove it") from error
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def find_photographs(folder: Path, max_count: int = 100, key: str = "subject.photos") -> list[Path]:
    """The images directly in a folder, sorted by name.

    key: the setting to name in an error
    raises: DataError if there is no such folder, no image in it, or more than `most`
    """
    if not folder.is_dir():
        raise DataError(
            f"{key}={str(folder)!r} is not a folder; give one with 1 to {max_count} photographs"
        )
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    paths = sorted(p for p in files if p.suffix.lower() in SUFFIXES)
    if not paths:
        other_files = f" (its {len(files)} files have other endings)" if files else " (it is empty)"
        raise DataError(
            f"{key}={str(folder)!r} holds no photograph{other_files}; put 1 to {max_count} files "
            f"ending in {', '.join(SUFFIXES)} there"
        )
    if len(paths) > max_count:
        raise DataError(
            f"{key}={str(folder)!r} holds {len(paths)} photographs; at most {max_count}"
        )
    return paths


def crop_square(image: Image.Image, side_px: int) -> Image.Image:
    """Resize the short side to `side_px` and cut the middle square."""
    return ImageOps.fit(image, (side_px, side_px), Image.Resampling.LANCZOS)
