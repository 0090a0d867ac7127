from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from benchmarks import photograph_faults as faults
from dreambooth_ray.data.quality.inspection import MIN_DUPLICATE_SHARE
from dreambooth_ray.data.quality.measured_photo import measure_image
from dreambooth_ray.data.quality.photo_copies import PhotoLikeness, compare_two_photographs

SIZE = (320, 256)


def scene(seed: int, ground: int = 0) -> Image.Image:
    """A toy before a wall with pictures: its shapes by a seed, the wall by another."""
    image = Image.new("RGB", SIZE, (150, 140, 120))
    pen = ImageDraw.Draw(image)
    _scatter(pen, np.random.default_rng(100 + ground), 60, (0, 0, *SIZE), 30)
    _scatter(pen, np.random.default_rng(seed), 40, (110, 70, 210, 180), 34)
    return image.filter(ImageFilter.GaussianBlur(0.7))


def _scatter(
    pen: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    count: int,
    box: tuple[int, int, int, int],
    largest_px: int,
) -> None:
    for k in range(count):
        x, y = rng.integers(box[:2], box[2:])
        w, h = rng.integers(6, largest_px, 2)
        colour = tuple(int(v) for v in rng.integers(0, 255, 3))
        shape = pen.ellipse if k % 2 else pen.rectangle
        shape((int(x), int(y), int(x + w), int(y + h)), fill=colour)


def compare(one: Image.Image, other: Image.Image) -> PhotoLikeness | None:
    signatures = [measure_image("", image).signature for image in (one, other)]
    return compare_two_photographs(signatures[0], signatures[1])


@pytest.mark.parametrize(
    "copy",
    [
        faults.saved_small, faults.nearly_same, faults.crop_darken_enlarge,
        faults.make_cropped_copy, faults.make_warm_filtered_copy,
        lambda image: image.resize((100, 80)),
    ],
)  # fmt: skip
def test_copies_are_one_photograph(copy: Callable[[Image.Image], Image.Image]) -> None:
    likeness = compare(scene(1), copy(scene(1)))
    assert likeness is not None
    assert likeness.share >= MIN_DUPLICATE_SHARE
    assert not likeness.is_mirrored


def test_a_mirrored_copy_is_one_too_and_said_to_be_so() -> None:
    for one, other in (
        (scene(1), faults.mirrored(scene(1))),
        (ImageOps.mirror(scene(2)), scene(2)),
    ):
        likeness = compare(one, other)
        assert likeness is not None
        assert likeness.share >= MIN_DUPLICATE_SHARE
        assert likeness.is_mirrored


def test_another_pose_before_the_same_wall_is_another_photograph() -> None:
    for seed in (2, 3):
        likeness = compare(scene(1), scene(seed))
        assert likeness is None or likeness.share < 0.5
    turned = compare(scene(1), faults.mirror_subject(scene(1)))
    assert turned is None or turned.share < MIN_DUPLICATE_SHARE


def test_different_photographs_lie_nowhere_on_each_other() -> None:
    likeness = compare(scene(1), scene(1, ground=1).rotate(90, expand=True))
    assert likeness is None or likeness.share < 0.5
    assert compare(scene(1), Image.new("RGB", (64, 64), (5, 5, 5))) is None


def test_the_order_does_not_matter() -> None:
    one, other = scene(1), faults.make_cropped_copy(scene(1))
    there, back = compare(one, other), compare(other, one)
    assert there is not None
    assert there == back
