import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from dreambooth_ray.data.quality.sharpness import Sharpness, measure_sharpness


def scene(side_px: int = 256) -> Image.Image:
    """Discs and boxes: edges in all directions."""
    image = Image.new("L", (side_px, side_px), 90)
    pen, rng = ImageDraw.Draw(image), np.random.default_rng(4)
    for k in range(40):
        x, y, r = (int(v) for v in rng.integers((0, 0, 6), (side_px, side_px, 24)))
        shape = pen.ellipse if k % 2 else pen.rectangle
        shape((x, y, x + r, y + r), fill=int(rng.integers(0, 255)))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def measure(image: Image.Image, inside: np.ndarray | None = None) -> Sharpness:
    grey = np.asarray(image, dtype=np.float32)
    return measure_sharpness(grey, np.ones(grey.shape, bool) if inside is None else inside)


def test_edges_are_as_steep_as_the_blur_leaves_them() -> None:
    """A step under a Gaussian of s px rises by 1 / (2.5 s) of its height a pixel."""
    values = [
        measure(scene().filter(ImageFilter.GaussianBlur(s))).subject for s in (0.0, 1.5, 2.5, 4)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.25
    assert values[2] == pytest.approx(1 / (2.507 * np.hypot(2.5, 0.6)), rel=0.15)


def test_a_soft_background_does_not_count_against_a_sharp_subject() -> None:
    middle = Image.new("L", (256, 256), 0)
    middle.paste(255, (80, 80, 176, 176))
    inside = np.asarray(middle) > 0
    soft = scene().filter(ImageFilter.GaussianBlur(6))
    assert measure(Image.composite(scene(), soft, middle), inside).subject > 0.25
    assert measure(Image.composite(soft, scene(), middle), inside).subject < 0.15


@pytest.mark.parametrize("slope", [0, 1])
def test_a_moved_camera_softens_one_direction(slope: int) -> None:
    pixels = np.asarray(scene(), dtype=np.float32)
    moved = np.mean([np.roll(pixels, (k * slope, k), axis=(0, 1)) for k in range(6)], axis=0)
    assert measure(scene()).evenness > 0.9
    assert measure(scene().filter(ImageFilter.GaussianBlur(2))).evenness > 0.85
    assert measure(Image.fromarray(moved.astype(np.uint8))).evenness < 0.8


@settings(max_examples=10, deadline=None)
@given(st.floats(0.35, 1.0), st.integers(0, 60))
def test_contrast_and_brightness_do_not_matter(contrast: float, offset: int) -> None:
    duller = scene().point(lambda v: round(v * contrast * 0.75 + offset))
    assert measure(duller).subject == pytest.approx(measure(scene()).subject, abs=0.03)


def test_without_edges_the_subject_is_measured_by_the_frame_and_a_fog_is_soft() -> None:
    inside = np.zeros((256, 256), dtype=bool)
    inside[:4, :4] = True
    plain = scene()
    plain.paste(90, (0, 0, 20, 20))
    assert measure(plain, inside).subject == measure(plain).subject
    assert measure(Image.new("L", (64, 64), 128)) == Sharpness(0.0, 1.0)
    assert measure(scene().filter(ImageFilter.GaussianBlur(40))).subject < 0.14
