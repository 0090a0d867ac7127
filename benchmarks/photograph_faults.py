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
    return _soften(image, share)


def focus_behind(image: Image.Image, share: float = 0.006) -> Image.Image:
    """The middle soft, the surroundings as they were: the lens took the wall."""
    return Image.composite(out_of_focus(image, share), image, _middle(image.size))


def shaken(image: Image.Image, share: float = 0.012) -> Image.Image:
    """Moved sideways while it was taken, by a share of its width."""
    return _move(image, share, 0.0)


def shaken_aslant(image: Image.Image, share: float = 0.014) -> Image.Image:
    """Moved along a diagonal while it was taken."""
    return _move(image, share, 1.0)


def _move(image: Image.Image, share: float, slope: float) -> Image.Image:
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    reach = max(2, round(pixels.shape[1] * share / np.hypot(1, slope)))
    total = np.zeros_like(pixels)
    for k in range(reach):
        total += np.roll(pixels, (round(k * slope), k), axis=(0, 1))
    return Image.fromarray((total / reach).astype(np.uint8))


def overexposed(image: Image.Image) -> Image.Image:
    """So long that four fifths of the middle are light or lost, three times at the least."""
    linear = _to_linear(image)
    gain = max(3.0, 0.6 / max(float(np.percentile(_take_middle(linear), 20)), 1e-3))
    return _from_linear(linear * gain)


def underexposed(image: Image.Image) -> Image.Image:
    """So short that nine tenths of the middle are nearly black, an eighth at the most."""
    linear = _to_linear(image)
    gain = min(1 / 8, 0.02 / max(float(np.percentile(_take_middle(linear), 90)), 1e-3))
    return _from_linear(linear * gain)


def washed_out(image: Image.Image, share: float = 0.25) -> Image.Image:
    """A veil of light: what is black becomes three quarters white."""
    return Image.eval(image.convert("RGB"), lambda v: round(255 - (255 - v) * share))


def noisy(image: Image.Image, deviation: float = 32.0) -> Image.Image:
    """The grain of a dim room, one grain a pixel at 512, in each colour."""
    scale = _GRAIN_SIDE_PX / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    grain = np.random.default_rng(2).normal(128, deviation, (size[1], size[0], 3))
    plane = Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    pixels = np.asarray(image.convert("RGB")).astype(np.float32) + np.asarray(plane) - 128.0
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def black_bars(image: Image.Image, share: float = 0.08) -> Image.Image:
    """Black to the left and right, as of a video."""
    width, height = image.size
    ground = Image.new("RGB", (round(width * (1 + 2 * share)), height))
    ground.paste(image, (round(width * share), 0))
    return save_as_jpeg(ground, 85)


def white_frame(image: Image.Image, share: float = 0.05) -> Image.Image:
    """A white frame, as of a print."""
    return save_as_jpeg(
        ImageOps.expand(image.convert("RGB"), round(min(image.size) * share), "white"), 85
    )


def screenshot(image: Image.Image, share: float = 0.14) -> Image.Image:
    """Taken from a telephone's screen: grey bars above and below, with writing in them."""
    width, height = image.size
    bar_px = round(height * share)
    ground = Image.new("RGB", (width, height + 2 * bar_px), (28, 28, 32))
    ground.paste(image, (0, bar_px))
    pen, step = ImageDraw.Draw(ground), max(2, bar_px // 12)
    for top_px in (bar_px // 3, height + bar_px + bar_px // 3):
        for k in range(6):
            left_px = round(width * (0.04 + 0.045 * k))
            pen.rectangle((left_px, top_px, left_px + 2 * step, top_px + 3 * step), (230, 230, 230))
    return save_as_jpeg(ground, 85)


def saved_small(image: Image.Image) -> Image.Image:
    """Reduced and compressed hard, as messengers do."""
    smaller = image.convert("RGB").resize(
        (max(1, image.width * 3 // 5), max(1, image.height * 3 // 5)), Image.Resampling.LANCZOS
    )
    return save_as_jpeg(smaller, 20)


def nearly_same(image: Image.Image) -> Image.Image:
    """Cut a little, reduced, brightened and saved small."""
    width, height = image.size
    box = (int(width * 0.03), int(height * 0.03), int(width * 0.98), int(height * 0.97))
    smaller = image.crop(box).resize((int(width * 0.8), int(height * 0.8)))
    return save_as_jpeg(ImageEnhance.Brightness(smaller).enhance(1.1), 55)


def saved_again(image: Image.Image) -> Image.Image:
    """Cut at two sides, darkened and enlarged."""
    width, height = image.size
    cut = image.crop((int(width * 0.04), 0, width, int(height * 0.96)))
    larger = cut.resize((int(width * 1.3), int(height * 1.3)), Image.Resampling.BICUBIC)
    return ImageEnhance.Brightness(larger).enhance(0.85)


def cropped(image: Image.Image, share: float = 0.72) -> Image.Image:
    """Three quarters of the width and of the height, from below the middle."""
    width, height = image.size
    left_px, top_px = int(width * 0.12), int(height * (1 - share) * 0.8)
    box = (left_px, top_px, left_px + int(width * share), top_px + int(height * share))
    return image.crop(box)


def mirrored(image: Image.Image) -> Image.Image:
    """Left for right, and cut a little."""
    width, height = image.size
    return ImageOps.mirror(image.crop((0, 0, int(width * 0.95), int(height * 0.95))))


def recoloured(image: Image.Image) -> Image.Image:
    """Through a filter: warmer, brighter, of more contrast."""
    bright = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(1.15)).enhance(1.25)
    red, green, blue = bright.convert("RGB").split()
    return Image.merge("RGB", (red, green, blue.point(lambda v: round(v * 0.75))))


def turned_subject(image: Image.Image) -> Image.Image:
    """No fault: the middle mirrored where it stands, another pose before the same backdrop."""
    return Image.composite(ImageOps.mirror(image), image, _middle(image.size))


def tiny_on_plain(image: Image.Image, share: float = 0.2) -> Image.Image:
    """The image a fifth as wide, on rough ground of its edge's colour."""
    width, height = image.size
    pixels = np.asarray(image.convert("RGB"))
    edge = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3)]).mean(axis=0)
    scale = 160 / min(image.size)
    shape = (round(height * scale), round(width * scale))
    noise = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    grain = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    ground = edge + (grain.astype(np.float32)[..., None] - 128) * 0.12
    return _paste_small(Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)), image, share)


def tiny_on_soft(image: Image.Image, share: float = 0.2) -> Image.Image:
    """The image a fifth as wide, before itself out of focus."""
    return _paste_small(_soften(image, 0.09), image, share)


def tiny_in_a_corner(image: Image.Image, share: float = 0.18) -> Image.Image:
    """A sixth as wide, in the corner of a wall that the light falls on from one side."""
    width, height = image.size
    light = np.linspace(235, 150, width, dtype=np.float32)[None, :, None]
    wall = np.broadcast_to(light * np.array([1.0, 0.97, 0.9], np.float32), (height, width, 3))
    grain = np.random.default_rng(1).normal(0, 4, wall.shape)
    ground = Image.fromarray(np.clip(wall + grain, 0, 255).astype(np.uint8))
    return _paste_small(ground, image, share, at=(0.08, 0.7))


def tiny_elsewhere(image: Image.Image, background: Image.Image, share: float = 0.22) -> Image.Image:
    """Less than a quarter as wide, before another photograph out of focus."""
    ground = _soften(background.convert("RGB").resize(image.size), 0.055)
    return _paste_small(ground, image, share, at=(0.6, 0.5))


def _paste_small(
    ground: Image.Image,
    image: Image.Image,
    share: float,
    at: tuple[float, float] = (0.4, 0.4),
) -> Image.Image:
    width, height = image.size
    size = (round(width * share), round(height * share))
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=255)
    small = image.resize(size, Image.Resampling.LANCZOS)
    position = (int(width * at[0]), int(height * at[1]))
    ground.paste(small, position, _soften(mask, 0.05))
    return ground


def _middle(size: tuple[int, int]) -> Image.Image:
    """A mask of the ellipse in the middle, seven tenths as wide and as high, its edge soft."""
    width, height = size
    mask = Image.new("L", size, 0)
    box = (width * 0.15, height * 0.15, width * 0.85, height * 0.85)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return _soften(mask, 0.02)


def _take_middle(plane: np.ndarray) -> np.ndarray:
    height, width = plane.shape[:2]
    middle: np.ndarray = plane[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]
    return np.asarray(middle.mean(axis=-1))


def _to_linear(image: Image.Image) -> np.ndarray:
    """Light of sRGB values, about: the power 2.2. (H, W, 3), 0 to 1."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255
    linear: np.ndarray = pixels**2.2
    return linear


def _from_linear(linear: np.ndarray) -> Image.Image:
    pixels = 255 * np.clip(linear, 0, 1) ** (1 / 2.2)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _soften(image: Image.Image, share: float) -> Image.Image:
    """A Gaussian of a share of the short side."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def save_as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """As a file of this quality has it, colours at half the resolution."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
