from PIL import Image, ImageEnhance

from dreambooth_ray.data.image_hash import distance, fingerprint, is_blank
from dreambooth_ray.toyworld.world import photographs, random_subject


def test_a_image_is_like_its_own_copies_and_unlike_others() -> None:
    images = [p for seed in range(4) for p in photographs(random_subject(seed), seed, 3)]
    prints = [fingerprint(p) for p in images]
    for image, mark in zip(images, prints, strict=True):
        smaller = image.resize((100, 100), Image.Resampling.LANCZOS)
        assert distance(fingerprint(smaller), mark) <= 12
        assert distance(fingerprint(ImageEnhance.Brightness(image).enhance(0.9)), mark) <= 12
    apart = [distance(a, b) for i, a in enumerate(prints) for b in prints[:i]]
    assert min(apart) > 12


def test_blank_is_one_colour(tile: Image.Image) -> None:
    assert is_blank(tile)
    tile.paste((0, 0, 0), (0, 0, 32, 64))
    assert not is_blank(tile)
