from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_ray.data.quality.inspection import inspect_photographs
from dreambooth_ray.data.quality.measured_photo import measure_image, measure_photo
from dreambooth_ray.evaluation.quality_page import render_quality_page

BOX = (60, 50, 140, 150)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A red subject on grain, in two photographs; the first has a mask."""
    for name in ("a", "b"):
        image = Image.effect_noise((240, 200), 20).convert("RGB")
        image.paste((220, 40, 40), BOX)
        image.save(tmp_path / f"{name}.png")
    make_mask().save(tmp_path / "a.mask.png")
    return tmp_path


def make_mask() -> Image.Image:
    mask = Image.new("L", (240, 200), 0)
    mask.paste(255, BOX)
    return mask


def test_a_photograph_is_shown_dark_outside_its_mask(folder: Path) -> None:
    photo = measure_photo(folder / "a.png")
    assert photo.region.source == "mask"
    assert photo.darkened_background_image is not None
    shown, original = (
        np.asarray(i, dtype=int) for i in (photo.darkened_background_image, photo.image)
    )
    is_inside = np.asarray(make_mask()) > 127
    assert np.array_equal(shown[is_inside], original[is_inside])
    assert np.array_equal(shown[~is_inside], original[~is_inside] // 4)


def test_an_even_photograph_has_no_region_to_show() -> None:
    assert (
        measure_image("a.png", Image.new("RGB", (128, 128), (90, 90, 90))).darkened_background_image
        is None
    )


def test_a_mask_is_proposed_only_where_there_is_none(folder: Path) -> None:
    asked = []

    def propose(path: Path, image: Image.Image) -> Image.Image:
        asked.append((path.name, image.size))
        return make_mask()

    report = inspect_photographs(folder, 128, propose_mask=propose)
    assert asked == [("b.png", (240, 200))]
    assert [photo.region.source for photo in report.photos] == ["mask", "proposed mask"]
    assert report.photos[0].region.frame_share == pytest.approx(report.photos[1].region.frame_share)
    (folder / "b.mask.png").write_bytes(b"no image")
    report = inspect_photographs(folder, 128, propose_mask=propose)
    assert len(asked) == 1
    assert report.photos[1].mask_error


def test_the_page_shows_masks_over_the_photographs(folder: Path) -> None:
    page = render_quality_page(inspect_photographs(folder, 128))
    assert "a.png, 240x200; dark outside its mask" in page
    assert "b.png, 240x200; dark outside what stands out" in page
    assert page.count('<figure><img src="data:image/jpeg') == 2
    assert page.count('width="160"') == 4
