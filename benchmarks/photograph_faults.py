"""Faults that people's photographs have, put into good ones.

Sizes are shares of the frame, so that a fault is as plain in a large photograph as in a small one.
Nothing here knows what the doctor takes for the subject: where the subject is meant, it is the
middle of the frame.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

_GRAIN_SIDE_PX = 512


def out_of_focus(image: Image.Image, share: float = 0.005) -> Image.Image:
    """Soft all over: a Gaussian of a share of the short side, 2.6 px at 512."""
    return _blur(image, share)


def focus_behind(image: Image.Image, share: float = 0.006) -> Image.Image:
    """The middle soft, the surroundings as they were: the lens took the wall."""
    return Image.composite(out_of_focus(image, share), image, _make_centre_mask(image.size))


def shaken(image: Image.Image, share: float = 0.012) -> Image.Image:
    """Moved sideways while it was taken, by a share of its width."""
    return _add_motion_blur(image, share, 0.0)


def shaken_aslant(image: Image.Image, share: float = 0.014) -> Image.Image:
    """Moved along a diagonal while it was taken."""
    return _add_motion_blur(image, share, 1.0)


def _add_motion_blur(image: Image.Image, share: float, slope: float) -> Image.Image:
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    blur_length_px = max(2, round(pixels.shape[1] * share / np.hypot(1, slope)))
    pixel_sum = np.zeros_like(pixels)
    for k in range(blur_length_px):
        pixel_sum += np.roll(pixels, (round(k * slope), k), axis=(0, 1))
    return Image.fromarray((pixel_sum / blur_length_px).astype(np.uint8))


def overexposed(image: Image.Image) -> Image.Image:
    """So long that four fifths of the middle are light or lost, three times at the least."""
    linear = _to_linear(image)
    exposure_gain = max(
        3.0, 0.6 / max(float(np.percentile(_read_centre_pixel_brightness(linear), 20)), 1e-3)
    )
    return _from_linear(linear * exposure_gain)


def underexposed(image: Image.Image) -> Image.Image:
    """So short that nine tenths of the middle are nearly black, an eighth at the most."""
    linear = _to_linear(image)
    exposure_gain = min(
        1 / 8, 0.02 / max(float(np.percentile(_read_centre_pixel_brightness(linear), 90)), 1e-3)
    )
    return _from_linear(linear * exposure_gain)


def washed_out(image: Image.Image, share: float = 0.25) -> Image.Image:
    """A veil of light: what is black becomes three quarters white."""
    return Image.eval(image.convert("RGB"), lambda v: round(255 - (255 - v) * share))


def noisy(image: Image.Image, deviation: float = 32.0) -> Image.Image:
    """The grain of a dim room, one grain a pixel at 512, in each colour."""
    grain_scale = _GRAIN_SIDE_PX / min(image.size)
    grain_image_size = (round(image.width * grain_scale), round(image.height * grain_scale))
    grain = np.random.default_rng(2).normal(
        128, deviation, (grain_image_size[1], grain_image_size[0], 3)
    )
    grain_image = Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    pixels = np.asarray(image.convert("RGB")).astype(np.float32) + np.asarray(grain_image) - 128.0
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def add_black_side_bars(image: Image.Image, share: float = 0.08) -> Image.Image:
    """Black to the left and right, as of a video."""
    width, height = image.size
    canvas = Image.new("RGB", (round(width * (1 + 2 * share)), height))
    canvas.paste(image, (round(width * share), 0))
    return compress_as_jpeg(canvas, 85)


def white_frame(image: Image.Image, share: float = 0.05) -> Image.Image:
    """A white frame, as of a print."""
    return compress_as_jpeg(
        ImageOps.expand(image.convert("RGB"), round(min(image.size) * share), "white"), 85
    )


def screenshot(image: Image.Image, share: float = 0.14) -> Image.Image:
    """Taken from a telephone's screen: grey bars above and below, with writing in them."""
    width, height = image.size
    bar_px = round(height * share)
    canvas = Image.new("RGB", (width, height + 2 * bar_px), (28, 28, 32))
    canvas.paste(image, (0, bar_px))
    drawing, glyph_px = ImageDraw.Draw(canvas), max(2, bar_px // 12)
    for top_px in (bar_px // 3, height + bar_px + bar_px // 3):
        for k in range(6):
            left_px = round(width * (0.04 + 0.045 * k))
            drawing.rectangle(
                (left_px, top_px, left_px + 2 * glyph_px, top_px + 3 * glyph_px), (230, 230, 230)
            )
    return compress_as_jpeg(canvas, 85)


def saved_small(image: Image.Image) -> Image.Image:
    """Reduced and compressed hard, as messengers do."""
    reduced_image = image.convert("RGB").resize(
        (max(1, image.width * 3 // 5), max(1, image.height * 3 // 5)), Image.Resampling.LANCZOS
    )
    return compress_as_jpeg(reduced_image, 20)


def nearly_same(image: Image.Image) -> Image.Image:
    """Cut a little, reduced, brightened and saved small."""
    width, height = image.size
    crop_box = (int(width * 0.03), int(height * 0.03), int(width * 0.98), int(height * 0.97))
    reduced_image = image.crop(crop_box).resize((int(width * 0.8), int(height * 0.8)))
    return compress_as_jpeg(ImageEnhance.Brightness(reduced_image).enhance(1.1), 55)


def crop_darken_enlarge(image: Image.Image) -> Image.Image:
    """Cut at two sides, darkened and enlarged."""
    width, height = image.size
    cropped_image = image.crop((int(width * 0.04), 0, width, int(height * 0.96)))
    enlarged_image = cropped_image.resize(
        (int(width * 1.3), int(height * 1.3)), Image.Resampling.BICUBIC
    )
    return ImageEnhance.Brightness(enlarged_image).enhance(0.85)


def make_cropped_copy(image: Image.Image, share: float = 0.72) -> Image.Image:
    """Three quarters of the width and of the height, from below the middle."""
    width, height = image.size
    left_px, top_px = int(width * 0.12), int(height * (1 - share) * 0.8)
    crop_box = (left_px, top_px, left_px + int(width * share), top_px + int(height * share))
    return image.crop(crop_box)


def mirrored(image: Image.Image) -> Image.Image:
    """Left for right, and cut a little."""
    width, height = image.size
    return ImageOps.mirror(image.crop((0, 0, int(width * 0.95), int(height * 0.95))))


def make_warm_filtered_copy(image: Image.Image) -> Image.Image:
    """Through a filter: warmer, brighter, of more contrast."""
    brightened_image = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(1.15)).enhance(
        1.25
    )
    red, green, blue = brightened_image.convert("RGB").split()
    return Image.merge("RGB", (red, green, blue.point(lambda v: round(v * 0.75))))


def mirror_subject(image: Image.Image) -> Image.Image:
    """No fault: the middle mirrored where it stands, another pose before the same backdrop."""
    return Image.composite(ImageOps.mirror(image), image, _make_centre_mask(image.size))


def tiny_on_plain(image: Image.Image, share: float = 0.2) -> Image.Image:
    """The image a fifth as wide, on rough ground of its edge's colour."""
    width, height = image.size
    pixels = np.asarray(image.convert("RGB"))
    edge_colour = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3)]).mean(
        axis=0
    )
    grain_scale = 160 / min(image.size)
    grain_shape = (round(height * grain_scale), round(width * grain_scale))
    coarse_grain = np.random.default_rng(0).integers(0, 255, grain_shape).astype(np.uint8)
    grain = np.asarray(
        Image.fromarray(coarse_grain).resize((width, height), Image.Resampling.BICUBIC)
    )
    background_pixels = edge_colour + (grain.astype(np.float32)[..., None] - 128) * 0.12
    return _paste_small(
        Image.fromarray(np.clip(background_pixels, 0, 255).astype(np.uint8)), image, share
    )


def tiny_on_soft(image: Image.Image, share: float = 0.2) -> Image.Image:
    """The image a fifth as wide, before itself out of focus."""
    return _paste_small(_blur(image, 0.09), image, share)


def tiny_in_a_corner(image: Image.Image, share: float = 0.18) -> Image.Image:
    """A sixth as wide, in the corner of a wall that the light falls on from one side."""
    width, height = image.size
    light_gradient = np.linspace(235, 150, width, dtype=np.float32)[None, :, None]
    wall_pixels = np.broadcast_to(
        light_gradient * np.array([1.0, 0.97, 0.9], np.float32), (height, width, 3)
    )
    grain = np.random.default_rng(1).normal(0, 4, wall_pixels.shape)
    wall_image = Image.fromarray(np.clip(wall_pixels + grain, 0, 255).astype(np.uint8))
    return _paste_small(wall_image, image, share, at=(0.08, 0.7))


def shrink_onto_other_photo(
    image: Image.Image, background: Image.Image, share: float = 0.22
) -> Image.Image:
    """Less than a quarter as wide, before another photograph out of focus."""
    blurred_background = _blur(background.convert("RGB").resize(image.size), 0.055)
    return _paste_small(blurred_background, image, share, at=(0.6, 0.5))


def _paste_small(
    background: Image.Image,
    image: Image.Image,
    share: float,
    at: tuple[float, float] = (0.4, 0.4),
) -> Image.Image:
    width, height = image.size
    small_size = (round(width * share), round(height * share))
    mask = Image.new("L", small_size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, small_size[0] - 1, small_size[1] - 1), fill=255)
    small_image = image.resize(small_size, Image.Resampling.LANCZOS)
    paste_corner_px = (int(width * at[0]), int(height * at[1]))
    background.paste(small_image, paste_corner_px, _blur(mask, 0.05))
    return background


def _make_centre_mask(size: tuple[int, int]) -> Image.Image:
    """A mask of the ellipse in the middle, seven tenths as wide and as high, its edge soft."""
    width, height = size
    mask = Image.new("L", size, 0)
    ellipse_box = (width * 0.15, height * 0.15, width * 0.85, height * 0.85)
    ImageDraw.Draw(mask).ellipse(ellipse_box, fill=255)
    return _blur(mask, 0.02)


def _read_centre_pixel_brightness(linear: np.ndarray) -> np.ndarray:
    height, width = linear.shape[:2]
    centre_pixels: np.ndarray = linear[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]
    return np.asarray(centre_pixels.mean(axis=-1))


def _to_linear(image: Image.Image) -> np.ndarray:
    """Light of sRGB values, about: the power 2.2. (H, W, 3), 0 to 1."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255
    linear: np.ndarray = pixels**2.2
    return linear


def _from_linear(linear: np.ndarray) -> Image.Image:
    pixels = 255 * np.clip(linear, 0, 1) ** (1 / 2.2)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _blur(image: Image.Image, share: float) -> Image.Image:
    """A Gaussian of a share of the short side."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def compress_as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """As a file of this quality has it, colours at half the resolution."""
    jpeg_buffer = io.BytesIO()
    image.save(jpeg_buffer, "JPEG", quality=quality)
    return Image.open(jpeg_buffer).convert("RGB")
