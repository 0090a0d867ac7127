from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.toyworld.attributes import CLASSES, COLOUR_NAMES, COLOURS, PATTERN_INK
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.toyworld.world import (
    PHOTO_BACKGROUNDS,
    random_scene_layout,
    random_subject,
    render_image,
    render_photographs,
)

seeds = st.integers(0, 2**31)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 10**6))
def test_an_image_is_a_pure_function_of_subject_and_scene(seed: int, index: int) -> None:
    subject, scene = random_subject(seed, index), random_scene_layout(seed, index)
    second_image = render_image(random_subject(seed, index), random_scene_layout(seed, index))
    assert second_image.tobytes() == render_image(subject, scene).tobytes()
    assert second_image.size == (64, 64)


@pytest.mark.parametrize("class_noun", CLASSES)
def test_the_subject_covers_a_fair_part_of_the_image(class_noun: str) -> None:
    scene = random_scene_layout(0, 0, "plain")
    bare = np.asarray(render_image(random_subject(1, 0, class_noun), scene))
    ground = bare[0, 0]
    share = (np.abs(bare.astype(int) - ground).sum(axis=2) > 60).mean()
    assert 0.08 < share < 0.6


def test_a_larger_image_shows_the_same() -> None:
    subject, scene = random_subject(3), random_scene_layout(3, 0)
    small = np.asarray(render_image(subject, scene, 64)).astype(float)
    large = np.asarray(render_image(subject, scene, 256).reduce(4)).astype(float)
    assert np.abs(small - large).mean() < 4


def test_no_two_colours_swap_into_each_other_under_a_pattern() -> None:
    def distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        return float(np.linalg.norm(np.subtract(a, b)))

    for one in COLOUR_NAMES:
        assert distance(COLOURS[one], PATTERN_INK[one]) > 90
        for two in COLOUR_NAMES:
            if one != two:
                swapped = distance(COLOURS[one], PATTERN_INK[two])
                swapped += distance(COLOURS[two], PATTERN_INK[one])
                assert swapped > 80, (one, two)


def test_photographs_leave_six_backgrounds_and_the_hat_unseen() -> None:
    assert len(PHOTO_BACKGROUNDS) == 4
    images = render_photographs(random_subject(7), 7, 5)
    assert len({p.tobytes() for p in images}) == 5


def test_a_class_the_world_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="robot"):
        write_photographs(tmp_path, 7, "spoon", 1, 64)
