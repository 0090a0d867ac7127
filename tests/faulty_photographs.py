"""Faults that people's photographs have, put into good ones."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter


def blurred(image: Image.Image, radius_px: float = 3) -> Image.Image:
    """Out of focus."""
    return image.filter(ImageFilter.GaussianBlur(radius_px))


def nearly_same(image: Image.Image) -> Image.Image:
    """Cut a little, reduced, brightened and saved small."""
    width, height = image.size
    box = (int(width * 0.03), int(height * 0.03), int(width * 0.98), int(height * 0.97))
    smaller = image.crop(box).resize((int(width * 0.8), int(height * 0.8)))
    file = io.BytesIO()
    ImageEnhance.Brightness(smaller).enhance(1.1).save(file, "JPEG", quality=55)
    return Image.open(file).convert("RGB")


def tiny_on_plain(image: Image.Image, share: float = 0.2) -> Image.Image:
    """The image a fifth as wide, on rough ground of its edge's colour."""
    width, height = image.size
    pixels = np.asarray(image.convert("RGB"))
    edge = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3)]).mean(axis=0)
    noise = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4)).astype(np.uint8)
    grain = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    ground = edge + (grain.astype(np.float32)[..., None] - 128) * 0.12
    return _paste_small(Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)), image, share)


def tiny_on_soft(image: Image.Image, share: float = 0.2) -> Image.Image:
    """The image a fifth as wide, before itself out of focus."""
    return _paste_small(image.filter(ImageFilter.GaussianBlur(60)), image, share)


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
    ground.paste(small, position, mask.filter(ImageFilter.GaussianBlur(6)))
    return ground


def shaken(image: Image.Image, share: float = 0.012) -> Image.Image:
    """Moved sideways while it was taken, by a share of its width."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    reach = max(1, round(pixels.shape[1] * share))
    moved = np.mean([np.roll(pixels, k, axis=1) for k in range(reach)], axis=0)
    return Image.fromarray(moved.astype(np.uint8))


def saved_again(image: Image.Image) -> Image.Image:
    """Cut at two sides, darkened and enlarged."""
    width, height = image.size
    cut = image.crop((int(width * 0.04), 0, width, int(height * 0.96)))
    larger = cut.resize((int(width * 1.3), int(height * 1.3)), Image.Resampling.BICUBIC)
    return ImageEnhance.Brightness(larger).enhance(0.85)


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
    ground = background.convert("RGB").resize(image.size).filter(ImageFilter.GaussianBlur(35))
    return _paste_small(ground, image, share, at=(0.6, 0.5))
