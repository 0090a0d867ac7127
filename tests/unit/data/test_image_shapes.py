import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from dreambooth_ray.config.training_images import TrainingImagesConfig
from dreambooth_ray.data.image_shapes import ImageShape, ShapeRule, list_bucket_shapes
from dreambooth_ray.data.subject import read_subject_photographs
from dreambooth_ray.errors import ConfigError, DataError


def make_rule(**keys: object) -> ShapeRule:
    return ShapeRule(TrainingImagesConfig(**{"buckets": True, **keys}))


@given(
    step=st.sampled_from([8, 16, 64]),
    num_steps=st.integers(1, 32),
    max_aspect=st.floats(1, 4),
)
def test_shapes_are_no_larger_than_the_square_that_is_one_of_them(
    step: int, num_steps: int, max_aspect: float
) -> None:
    side = step * num_steps
    shapes = list_bucket_shapes(side, step, max_aspect)
    assert ImageShape(side, side) in shapes
    for width, height in shapes:
        assert width % step == height % step == 0
        assert width * height <= side**2
        assert max(width, height) <= max_aspect * min(width, height)
        assert ImageShape(height, width) in shapes
        # Nothing higher would fit beside it, of this width or of the other side's.
        assert min(width, height) * (max(width, height) + step) > side**2


@given(width=st.integers(400, 4000), height=st.integers(400, 4000))
def test_a_bucket_is_of_the_nearest_aspect(width: int, height: int) -> None:
    assume(0.45 < width / height < 2.2)
    rule = make_rule()
    (shape,) = rule.choose_shape_per_resolution((width, height), "x")
    distance = abs(math.log(shape.width * height / (shape.height * width)))
    others = list_bucket_shapes(512, 64, 2.0)
    assert distance == min(abs(math.log(s.width * height / (s.height * width))) for s in others)
    (lying,) = rule.choose_shape_per_resolution((height, width), "x")
    assert lying == (shape.height, shape.width)


def test_each_resolution_has_a_shape_and_without_buckets_they_are_squares() -> None:
    rule = make_rule(resolution=(768, 512))
    assert rule.choose_shape_per_resolution((1600, 1200), "x") == ((576, 448), (896, 640))
    squares = make_rule(resolution=(768, 512), buckets=False)
    assert squares.choose_shape_per_resolution((1600, 40), "x") == ((512, 512), (768, 768))


@pytest.mark.parametrize("size", [(40, 4000), (4000, 40), (1400, 300)])
def test_a_photograph_that_no_bucket_fits_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"a\.png is \d+x\d+ px.*bucket.*bucket_max_aspect=2"):
        make_rule().choose_shape_per_resolution(size, "a.png")


def test_a_line_of_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is 4000x1 px; each side needs at least 16 px"):
        read_subject_photographs(tmp_path, "x", make_rule())


def test_a_photograph_is_enlarged_to_its_double_at_most() -> None:
    assert make_rule().choose_shape_per_resolution((256, 256), "x") == ((512, 512),)
    with pytest.raises(DataError, match=r"enlarged 2\.0 times .*lower train\.resolution=512"):
        make_rule().choose_shape_per_resolution((255, 255), "x")


def test_the_middle_or_all_of_a_photograph_is_seen() -> None:
    image = Image.new("RGB", (60, 20), (0, 0, 0))
    image.paste((255, 255, 255), (20, 0, 40, 20))
    cut = ShapeRule.make_square_rule(10).cut(image, ImageShape(10, 10))
    assert all(low > 230 for low, _ in cut.image.getextrema())
    assert (cut.left, cut.top) == (10, 0)
    squeezed = make_rule(crop="none").cut(image, ImageShape(24, 10))
    assert squeezed.image.size == (24, 10)
    assert (squeezed.left, squeezed.top) == (0, 0)
    assert squeezed.image.getpixel((1, 5)) == squeezed.image.getpixel((22, 5)) == (0, 0, 0)


@pytest.mark.parametrize("corner", [(20, 60), (420, 60), (220, 60)])
def test_a_smart_cut_keeps_what_stands_out(corner: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(110, 140, (200, 600, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image.paste((220, 40, 30), (*corner, corner[0] + 80, corner[1] + 80))
    for turned in (image, image.transpose(Image.Transpose.ROTATE_270)):
        rule = make_rule(crop="smart", buckets=False, resolution=64)
        cut = rule.cut(turned, ImageShape(64, 64))
        reds = np.asarray(cut.image, dtype=int)
        share = ((reds[..., 0] > 180) & (reds[..., 1] < 90)).mean()
        assert share == pytest.approx((80 / 200) ** 2, rel=0.1)


def test_an_even_photograph_is_cut_in_its_middle() -> None:
    image = Image.new("RGB", (300, 100), (9, 9, 9))
    cut = make_rule(crop="smart", buckets=False, resolution=64).cut(image, ImageShape(64, 64))
    assert (cut.left, cut.top) == (64, 0)


@given(
    width=st.integers(16, 400),
    height=st.integers(16, 400),
    crop=st.sampled_from(["center", "smart"]),
)
def test_a_cut_lies_inside_its_photograph(width: int, height: int, crop: str) -> None:
    rule = make_rule(crop=crop, buckets=False)
    cut = rule.cut(Image.new("RGB", (width, height)), ImageShape(48, 32))
    scale = max(48 / width, 32 / height)
    assert cut.image.size == (48, 32)
    assert 0 <= cut.left <= scale * width - 48 + 1
    assert 0 <= cut.top <= scale * height - 32 + 1


@pytest.mark.parametrize(
    ("side_px", "step_px", "max_aspect", "advice"),
    [
        (64, 64, 2, "take 16 as step, or train.buckets=false"),
        (512, 512, 2, "take 128 as step, or"),
        (64, 64, 1, "raise that aspect, or set train.buckets=false"),
    ],
)
def test_a_step_that_leaves_buckets_is_advised(
    side_px: int, step_px: int, max_aspect: float, advice: str
) -> None:
    rule = make_rule(resolution=side_px, bucket_step_px=step_px, bucket_max_aspect=max_aspect)
    with pytest.raises(ConfigError, match=re.escape(advice)):
        rule.choose_shape_per_resolution((300, 200), "a.png")
