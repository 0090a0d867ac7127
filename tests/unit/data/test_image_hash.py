from PIL import Image, ImageEnhance

from dreambooth_ray.data.image_hash import compute_fingerprint, fingerprint_distance, is_blank_image
from dreambooth_ray.toyworld.world import random_subject, render_photographs


def test_an_image_is_like_its_own_copies_and_unlike_others() -> None:
    images = [p for seed in range(4) for p in render_photographs(random_subject(seed), seed, 3)]
    prints = [compute_fingerprint(p) for p in images]
    for image, mark in zip(images, prints, strict=True):
        smaller = image.resize((100, 100), Image.Resampling.LANCZOS)
        assert fingerprint_distance(compute_fingerprint(smaller), mark) <= 12
        assert (
            fingerprint_distance(
                compute_fingerprint(ImageEnhance.Brightness(image).enhance(0.9)), mark
            )
            <= 12
        )
    distances = [fingerprint_distance(a, b) for i, a in enumerate(prints) for b in prints[:i]]
    assert min(distances) > 12


def test_blank_is_one_colour(tile: Image.Image) -> None:
    assert is_blank_image(tile)
    tile.paste((0, 0, 0), (0, 0, 32, 64))
    assert not is_blank_image(tile)
