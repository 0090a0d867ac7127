import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from dreambooth_ray.data.quality.subject_region import (
    _barrier_distance,
    find_subject_region,
)


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
    assert region.share == pytest.approx(0.25, abs=0.01)
    assert region.inside[:78, :98].all()
    assert find_subject_region(ring_on_grey(), Image.new("L", (50, 40))).source != "mask"


@pytest.mark.parametrize("size", [(16, 400), (400, 16), (40, 40)])
def test_a_frame_in_which_nothing_stands_out_is_taken_whole(size: tuple[int, int]) -> None:
    region = find_subject_region(Image.new("RGB", size, (9, 200, 30)))
    assert region.source == "frame"
    assert region.inside.all()
    assert region.inside.shape == (size[1], size[0])


def brute_barriers(plane: np.ndarray) -> np.ndarray:
    """By every pair of lowest and highest value: is there a path from the edge within them?"""
    best = np.full(plane.shape, np.inf)
    values = np.unique(plane)
    for low in values:
        for high in values[values >= low]:
            is_open = (plane >= low) & (plane <= high)
            reached = np.zeros_like(is_open)
            reached[[0, -1]], reached[:, [0, -1]] = True, True
            reached &= is_open
            for _ in range(plane.size):
                grown = np.pad(reached, 1)
                reached = is_open & (
                    reached
                    | grown[2:, 1:-1]
                    | grown[:-2, 1:-1]
                    | grown[1:-1, 2:]
                    | grown[1:-1, :-2]
                )
            best = np.where(reached, np.minimum(best, high - low), best)
    return best


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (5, 6), elements=st.integers(0, 4).map(float)))
def test_barriers_are_bounded_by_those_over_all_paths(plane: np.ndarray) -> None:
    """Relaxing keeps one path a pixel: never below the true barrier, and at the edge 0."""
    distance, true = _barrier_distance(plane), brute_barriers(plane)
    assert (distance >= true - 1e-4).all()
    assert (distance <= plane.max() - plane.min() + 1e-4).all()
    assert not distance[[0, -1]].any()
    assert not distance[:, [0, -1]].any()
    assert ((distance > 1e-4) == (true > 0)).all()
