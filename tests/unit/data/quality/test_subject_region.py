import numpy as np
import pytest
from PIL import Image

from dreambooth_ray.data.quality.subject_region import find_subject_region


def ring_on_grey(size: tuple[int, int] = (200, 160)) -> Image.Image:
    image = Image.new("RGB", size, (120, 120, 120))
    image.paste((200, 40, 40), (60, 40, 130, 110))
    image.paste((120, 120, 120), (80, 60, 110, 90))
    return image


def test_what_stands_out_is_found_with_what_it_encloses() -> None:
    region = find_subject_region(ring_on_grey())
    assert region.source == "what stands out"
    true = np.zeros((160, 200), dtype=bool)
    true[40:110, 60:130] = True
    overlap = (region.inside & true).sum() / (region.inside | true).sum()
    assert overlap > 0.85
    assert (region.inside & ~region.around).sum() == 0
    assert region.around.sum() > region.inside.sum()
    assert (
        region.describe() == f"in what stands out, {100 * region.inside.mean():.0f} % of the frame"
    )


def test_a_mask_goes_before_what_stands_out_and_an_empty_one_is_none() -> None:
    mask = Image.new("L", (50, 40), 0)
    mask.paste(255, (0, 0, 25, 20))
    region = find_subject_region(ring_on_grey(), mask)
    assert region.source == "mask"
    assert region.frame_share == pytest.approx(0.25, abs=0.01)
    assert region.inside[:78, :98].all()
    assert find_subject_region(ring_on_grey(), Image.new("L", (50, 40))).source != "mask"


@pytest.mark.parametrize("size", [(16, 400), (400, 16), (40, 40)])
def test_a_frame_in_which_nothing_stands_out_is_taken_whole(size: tuple[int, int]) -> None:
    region = find_subject_region(Image.new("RGB", size, (9, 200, 30)))
    assert region.source == "frame"
    assert region.inside.all()
    assert region.inside.shape == (size[1], size[0])
