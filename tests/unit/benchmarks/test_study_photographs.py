from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.study_photographs import (
    ASPECT_SIZES,
    ASPECTS,
    ODD_PLACE,
    ONE_PLACE,
    SQUARES,
    draw_mask,
    ensure_photograph_folder,
    measure_cut_share,
)
from dreambooth_ray.data.masks import read_mask
from dreambooth_ray.data.photographs import find_photographs as list_photographs
from dreambooth_ray.toyworld.evaluator import load_evaluator, predict_attributes
from dreambooth_ray.toyworld.world import random_scene_layout, random_subject, render_image


def test_one_place_is_the_same_outside_the_subject_and_read_as_that_place(tmp_path: Path) -> None:
    paths = list_photographs(ensure_photograph_folder(tmp_path, 6, ONE_PLACE))
    images = [Image.open(path) for path in paths]
    assert predict_attributes(load_evaluator(), images).attributes["background"] == [ODD_PLACE] * 5
    outside = np.ones((256, 256), dtype=bool)
    for path, image in zip(paths, images, strict=True):
        mask = read_mask(path, image.size)
        assert mask is not None
        outside &= np.asarray(mask) == 0
    assert outside.mean() > 0.3
    first, *others = [np.asarray(image)[outside] for image in images]
    assert all((other == first).all() for other in others)


def test_photographs_of_every_aspect_hold_the_whole_subject_away_from_the_middle(
    tmp_path: Path,
) -> None:
    paths = list_photographs(ensure_photograph_folder(tmp_path, 0, ASPECTS))
    sizes = [Image.open(path).size for path in paths]
    assert sizes == [size for size in ASPECT_SIZES for _ in range(2)]
    for path, (width, height) in zip(paths, sizes, strict=True):
        mask = read_mask(path, (width, height))
        assert mask is not None
        edges = np.asarray(mask)
        assert max(edges[0].max(), edges[-1].max(), edges[:, 0].max(), edges[:, -1].max()) < 128
        rows, columns = np.nonzero(edges > 128)
        middle = rows.mean() / height if height > width else columns.mean() / width
        assert abs(middle - 0.5) > 0.1


def test_a_mask_is_white_on_the_subject_alone() -> None:
    subject, scene = random_subject(6), random_scene_layout(6, 1, "snow")
    mask = np.asarray(draw_mask(subject, scene, 64))
    assert 0.1 < (mask > 128).mean() < 0.5
    assert mask[0].max() == 0
    far = np.asarray(render_image(subject, scene, 64))[mask == 255]
    assert len(np.unique(far, axis=0)) > 2


def test_what_is_cut_off_is_a_share_of_the_subject() -> None:
    mask = Image.new("L", (10, 10))
    mask.paste(255, (0, 0, 4, 10))
    assert measure_cut_share(mask, (1, 0, 10, 10)) == pytest.approx(0.25)
    assert measure_cut_share(mask, (0, 0, 10, 10)) == 0


def test_photographs_are_made_once(tmp_path: Path) -> None:
    folder = ensure_photograph_folder(tmp_path, 0, SQUARES)
    (folder / "00.png").unlink()
    assert len(list_photographs(ensure_photograph_folder(tmp_path, 0, SQUARES))) == 4
