"""Faults that people's photographs have, put into good ones."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter


def blurred(picture: Image.Image, radius_px: float = 3) -> Image.Image:
    """Out of focus."""
    return picture.filter(ImageFilter.GaussianBlur(radius_px))


def nearly_same(picture: Image.Image) -> Image.Image:
    """Cut a little, reduced, brightened and saved small."""
    width, height = picture.size
    box = (int(width * 0.03), int(height * 0.03), int(width * 0.98), int(height * 0.97))
    smaller = picture.crop(box).resize((int(width * 0.8), int(height * 0.8)))
    file = io.BytesIO()
    ImageEnhance.Brightness(smaller).enhance(1.1).save(file, "JPEG", quality=55)
    return Image.open(file).convert("RGB")


def tiny_on_plain(picture: Image.Image, share: float = 0.2) -> Image.Image:
    """The picture a fifth as wide, on rough ground of its edge's colour."""
    width, height = picture.size
    pixels = np.asarray(picture.convert("RGB"))
    edge = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3)]).mean(axis=0)
    noise = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4)).astype(np.uint8)
    grain = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    ground = edge + (grain.astype(np.float32)[..., None] - 128) * 0.12
    return _place(Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)), picture, share)


def tiny_on_soft(picture: Image.Image, share: float = 0.2) -> Image.Image:
    """The picture a fifth as wide, before itself out of focus."""
    return _place(picture.filter(ImageFilter.GaussianBlur(60)), picture, share)


def _place(ground: Image.Image, picture: Image.Image, share: float) -> Image.Image:
    width, height = picture.size
    size = (round(width * share), round(height * share))
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=255)
    small = picture.resize(size, Image.Resampling.LANCZOS)
    place = (int(width * 0.4), int(height * 0.4))
    ground.paste(small, place, mask.filter(ImageFilter.GaussianBlur(6)))
    return ground
