import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from dreambooth_ray.data.saliency import (
    _barrier_distance,
    compute_saliency,
    find_saliency_size,
    find_salient_window,
)


@pytest.mark.parametrize("left_px", [0, 70, 200, 330])
def test_a_window_of_a_wide_image_holds_what_stands_out(left_px: int) -> None:
    image = Image.new("RGB", (400, 200), (30, 140, 60))
    image.paste((220, 40, 40), (left_px, 60, left_px + 70, 150))
    saliency = compute_saliency(image)
    assert saliency.shape == find_saliency_size(image.size)[::-1]
    start_px = 200 * find_salient_window(saliency.sum(axis=0), 0.5)
    assert start_px <= left_px + 2
    assert start_px + 200 >= left_px + 68


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
