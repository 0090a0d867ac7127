import numpy as np
import pytest
from PIL import Image, ImageFilter

from dreambooth_ray.data.quality.exposure import Exposure, measure_exposure, measure_noise
from dreambooth_ray.data.quality.measured_photo import measure_image
from dreambooth_ray.data.quality.photo_checks import check_photo


def exposure(rgb: np.ndarray, inside: np.ndarray) -> Exposure:
    return measure_exposure(rgb, rgb.mean(axis=-1), inside)


def test_a_white_wall_behind_counts_for_the_frame_alone() -> None:
    rgb = np.full((64, 64, 3), 255, dtype=np.float32)
    rgb[16:48, 16:48] = (150, 120, 90)
    inside = np.zeros((64, 64), dtype=bool)
    inside[16:48, 16:48] = True
    measured = exposure(rgb, inside)
    assert measured.subject_clipped == measured.subject_touched == measured.ragged == 0
    assert measured.frame_clipped == 0.75
    assert measured.subject_bright == 120
    assert measured.frame_bright == 255


def test_one_colour_at_its_end_is_a_colour_and_two_are_lost() -> None:
    inside = np.ones((16, 16), dtype=bool)
    yellow = np.broadcast_to(np.array([255, 200, 60], np.float32), (16, 16, 3))
    assert exposure(yellow, inside).subject_touched == 1
    assert exposure(yellow, inside).subject_clipped == 0
    assert exposure(yellow * np.array([1, 1.3, 1], np.float32), inside).subject_clipped == 1
    assert exposure(yellow * np.array([1, 1, 0], np.float32), inside).subject_touched == 0


def test_texture_clipped_in_part_is_ragged() -> None:
    rng = np.random.default_rng(0)
    rough = np.repeat(rng.normal(245, 20, (64, 64, 1)), 3, axis=2).astype(np.float32)
    assert exposure(np.clip(rough, 0, 255), np.ones((64, 64), bool)).ragged > 0.9
    assert exposure(np.clip(rough - 120, 0, 255), np.ones((64, 64), bool)).ragged == 0


@pytest.mark.parametrize("deviation", [0, 4, 12])
def test_grain_between_colours_is_measured_and_roughness_of_all_is_not(deviation: float) -> None:
    rng = np.random.default_rng(1)
    rough = np.repeat(rng.normal(128, 30, (128, 128, 1)), 3, axis=2).astype(np.float32)
    rgb = rough + rng.normal(0, deviation, rough.shape).astype(np.float32)
    expected = deviation * np.sqrt(2)  # the difference of two colours
    assert measure_noise(rgb, rgb.mean(axis=-1)) == pytest.approx(expected, rel=0.2, abs=0.01)


def test_black_and_white_have_no_noise() -> None:
    even = np.full((64, 64, 3), 255, dtype=np.float32)
    assert measure_noise(even, even.mean(axis=-1)) == 0
    assert measure_noise(0 * even, 0 * even.mean(axis=-1)) == 0


def white_cup(ground: int = 254) -> Image.Image:
    """Light and shade on a round white thing before a white wall."""
    y, x = np.mgrid[:256, :256] - 128.0
    light = 190 + 0.6 * x - 0.3 * y
    plane = np.where(np.hypot(x, y) < 70, light, ground)
    pen = Image.fromarray(np.clip(plane, 0, 255).astype(np.uint8)).convert("RGB")
    pen.paste((70, 75, 90), (100, 120, 150, 126))
    return pen.filter(ImageFilter.GaussianBlur(0.7))


def checks(image: Image.Image) -> set[str]:
    return {issue.check for issue in check_photo(measure_image("cup", image), 256)}


def test_white_things_before_white_are_well_exposed_until_they_are_lost() -> None:
    assert "exposure" not in checks(white_cup())
    assert "exposure" in checks(Image.eval(white_cup(), lambda v: min(255, v * 2)))
    assert "exposure" in checks(Image.eval(white_cup(), lambda v: 255 - (255 - v) // 4))
    assert "exposure" in checks(Image.eval(white_cup(), lambda v: v // 8))


def test_a_silhouette_before_light_is_dark() -> None:
    shadow = Image.new("RGB", (256, 256), (200, 210, 230))
    shadow.paste((18, 16, 20), (80, 60, 180, 200))
    assert "exposure" in checks(shadow)
