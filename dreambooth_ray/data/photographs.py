"""Reading people's photographs: every common format in, upright RGB out."""

import mimetypes
import warnings
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.data.color_profiles import convert_to_srgb, reduce_to_eight_bits
from dreambooth_ray.data.masks import DECODING_ERRORS, is_mask
from dreambooth_ray.errors import DataError

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp",
)  # fmt: skip
_HEIF_SUFFIXES = (".heic", ".heif")
# Cameras' own formats, which mimetypes does not know.
_RAW_SUFFIXES = (
    ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw", ".jxl",
)  # fmt: skip
MIN_SIDE_PX = 16
MAX_PIXELS = 100_000_000


def read_photograph(path: Path) -> Image.Image:
    """Decode one photograph: EXIF rotation applied, transparency laid on white, RGB in sRGB.

    Colours of a wide gamut are converted by the embedded profile. Of several images in a file, the
    first.

    raises: DataError naming the file if it is truncated, not an image, below 16 px, or
        above 100 million pixels (checked before anything is decoded)
    """
    if path.suffix.lower() in _HEIF_SUFFIXES:
        _register_heif()
    try:
        with warnings.catch_warnings():
            # Our own bound below is stricter, and damaged metadata are not the image.
            warnings.simplefilter("ignore")
            opened_image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large to decode safely ({error}); reduce it first"
        ) from error
    except DECODING_ERRORS as error:
        raise DataError(
            f"{path} is not a readable image ({error}); remove or replace it"
        ) from error
    with opened_image as image:
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
            with warnings.catch_warnings(action="ignore"):
                image.load()
                return show_as_rgb(image)
        except DECODING_ERRORS as error:
            raise DataError(f"{path} is damaged ({error}); replace or remove it") from error


def show_as_rgb(image: Image.Image) -> Image.Image:
    """As a viewer shows it: upright by EXIF, in sRGB by its profile, transparency on white."""
    return _to_rgb(convert_to_srgb(ImageOps.exif_transpose(image)))


@cache
def _register_heif() -> None:
    import pillow_heif  # noqa: PLC0415  a library of 20 MB, for those who have such files

    pillow_heif.register_heif_opener()


def _to_rgb(image: Image.Image) -> Image.Image:
    image = reduce_to_eight_bits(image)
    if image.has_transparency_data:
        rgba_image = image.convert("RGBA")
        white_background = Image.new("RGBA", rgba_image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white_background, rgba_image).convert("RGB")
    return image.convert("RGB")


def find_photographs(folder: Path, max_count: int = 100, key: str = "subject.photos") -> list[Path]:
    """The images directly in a folder, sorted by name.

    key: the setting to name in an error
    raises: DataError if there is no such folder, no image in it, or more than `max_count`
    """
    if not folder.is_dir():
        raise DataError(
            f"{key}={str(folder)!r} is not a folder; give one with 1 to {max_count} photographs"
        )
    photograph_paths = _list_photographs(folder)
    if not photograph_paths:
        files = list_files(folder)
        folder_content_text = (
            f"its {len(files)} files have other endings" if files else "it is empty"
        )
        if len(files) == 1:
            folder_content_text = "its 1 file has another ending"
        if any(map(is_mask, files)):
            folder_content_text = "masks alone"
        unread_text = describe_unread(folder)
        raise DataError(
            f"{key}={str(folder)!r} holds no photograph ({unread_text or folder_content_text}); "
            "put 1 to "
            f"{max_count} files ending in {', '.join(SUFFIXES)} there, or give the folder with them"
        )
    if len(photograph_paths) > max_count:
        raise DataError(
            f"{key}={str(folder)!r} holds {len(photograph_paths)} photographs; at most {max_count}"
        )
    return photograph_paths


def is_folder_photograph_or_mask(folder: Path | str, path: Path) -> bool:
    """Whether a file, there or not yet, is one of a folder's photographs or masks by its name."""
    return path.suffix.lower() in SUFFIXES and path.parent.resolve() == Path(folder).resolve()


def describe_unread(folder: Path) -> str:
    """What looks like photographs in a folder and is not read, in words; "" if there is nothing.

    Files in formats that are not read, and folders that hold photographs.
    """
    photograph_paths = set(_list_photographs(folder))
    unread_names = [
        p.name
        for p in list_files(folder)
        if p not in photograph_paths and not is_mask(p) and _looks_like_photograph(p)
    ]
    for photograph_subfolder in sorted(
        p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."
    ):
        if num_photographs := len(_list_photographs(photograph_subfolder)):
            unread_names.append(
                f"the folder {photograph_subfolder.name}/ with "
                f"{describe_count(num_photographs, 'photograph')}"
            )
    unread_names += [
        f"{p.name}, a link to what is not there"
        for p in sorted(folder.iterdir())
        if p.suffix.lower() in SUFFIXES and p.is_symlink() and not p.exists()
    ]
    return f"not used: {', '.join(unread_names)}" if unread_names else ""


def list_files(folder: Path) -> list[Path]:
    """Files of a folder that are not hidden, by name."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _list_photographs(folder: Path) -> list[Path]:
    return [p for p in list_files(folder) if p.suffix.lower() in SUFFIXES and not is_mask(p)]


def _looks_like_photograph(path: Path) -> bool:
    """By the ending; without a known one, by the file's first bytes."""
    mime_type = mimetypes.guess_type(path.name)[0]
    if mime_type or path.suffix.lower() in _RAW_SUFFIXES:
        return not mime_type or mime_type.startswith(("image/", "video/"))
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path):
            return True
    except DECODING_ERRORS:
        return False
