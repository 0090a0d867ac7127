"""Photographs of toy subjects that a study trains on: usual ones, and those that make it hard."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_ray.data.masks import MASK_SUFFIX
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.toyworld.world import (
    PHOTO_BACKGROUNDS,
    SceneLayout,
    Subject,
    random_scene_layout,
    random_subject,
    render_image,
)

SQUARES, ONE_PLACE, ASPECTS = "squares", "one place", "aspects"
NUM_SQUARES = 5
# Where all photographs of ONE_PLACE are taken: nothing of it moves, and no prompt of a study that
# is judged names it.
ODD_PLACE = "water"
_PLACE_SEED = 11
# Width and height of the photographs of ASPECTS, two of each.
ASPECT_SIZES = ((480, 640), (640, 480), (360, 640), (640, 360))
_CANVAS_PX = 640
_SIDE_PX = 256


def ensure_photograph_folder(work: Path, subject: int, kind: str) -> Path:
    """The folder of a subject's photographs, made if it is not there."""
    folder_name = str(subject) if kind == SQUARES else f"{subject}, {kind}"
    folder = work / "photos" / folder_name
    if not folder.exists():
        _WRITERS[kind](folder, subject)
    return folder


def _write_squares(folder: Path, seed: int) -> None:
    class_noun = random_subject(seed).class_noun
    write_photographs(folder, seed, class_noun, NUM_SQUARES, size_px=_SIDE_PX)


def _write_one_place(folder: Path, seed: int) -> None:
    """Each before the same background, with its mask."""
    subject, scenes = random_subject(seed), _make_scenes(seed, NUM_SQUARES)
    for k, scene in enumerate(scenes):
        place_scene = replace(scene, background=ODD_PLACE, seed=_PLACE_SEED)
        _save_photograph(
            folder, k, render_image(subject, place_scene, _SIDE_PX), draw_mask(subject, scene)
        )


def _write_aspects(folder: Path, seed: int) -> None:
    """The subject is whole in each, as large as the shorter side allows, and not in its middle."""
    subject, photo_sizes = random_subject(seed), [size for size in ASPECT_SIZES for _ in range(2)]
    for k, (unframed_scene, size) in enumerate(
        zip(_make_scenes(seed, len(photo_sizes)), photo_sizes, strict=True)
    ):
        crop_box, scene = _frame_subject(unframed_scene, size, seed, k)
        image = render_image(subject, scene, _CANVAS_PX)
        _save_photograph(
            folder, k, image.crop(crop_box), draw_mask(subject, scene, _CANVAS_PX).crop(crop_box)
        )


def _frame_subject(
    scene: SceneLayout, size: tuple[int, int], seed: int, index: int
) -> tuple[tuple[int, int, int, int], SceneLayout]:
    """Where the photograph is cut out of the canvas, and the scene with the subject in it."""
    width, height = size
    left_px, top_px = (_CANVAS_PX - width) // 2, (_CANVAS_PX - height) // 2
    # A subject reaches from -1.25 to 1.25 of its scale at most, and stands upright or nearly.
    subject_scale = 0.36 * min(size) / _CANVAS_PX
    rng = np.random.default_rng([seed, 3, index])
    # At a third of the longer side, as people place what they photograph.
    subject_position = float(rng.choice([0.32, 0.68]) + rng.uniform(-0.03, 0.03))
    x, y = (subject_position, 0.5) if width > height else (0.5, subject_position)
    return (left_px, top_px, left_px + width, top_px + height), replace(
        scene,
        x=(left_px + x * width) / _CANVAS_PX,
        y=(top_px + y * height) / _CANVAS_PX,
        scale=subject_scale,
    )


def _make_scenes(seed: int, count: int) -> list[SceneLayout]:
    """Those of the world's own photographs, one after another."""
    background_names = PHOTO_BACKGROUNDS
    scenes = [
        random_scene_layout(seed, 7919 + k, background_names[k % len(background_names)])
        for k in range(count)
    ]
    return [replace(scene, hat=False) for scene in scenes]


def draw_mask(subject: Subject, scene: SceneLayout, size_px: int = _SIDE_PX) -> Image.Image:
    """White where the subject is: what is the same before two backgrounds that are nowhere."""
    background_renders = [
        np.asarray(
            render_image(subject, replace(scene, background="plain", seed=seed), size_px), dtype=int
        )
        for seed in _find_background_shade_seeds()
    ]
    render_difference = np.abs(background_renders[0] - background_renders[1]).max(axis=2)
    return Image.fromarray(
        (255 * (1 - render_difference / render_difference.max())).astype(np.uint8)
    )


def _find_background_shade_seeds() -> tuple[int, int]:
    """Seeds of the darkest and the lightest plain background of the first twenty."""
    scene, subject = random_scene_layout(0, 0, "plain"), random_subject(0)
    corner_values = [
        render_image(subject, replace(scene, seed=seed), 8).getpixel((0, 0))[0]  # type: ignore[index]
        for seed in range(20)
    ]
    return corner_values.index(min(corner_values)), corner_values.index(max(corner_values))


def measure_cut_share(mask: Image.Image, seen: tuple[int, int, int, int]) -> float:
    """Share of the subject that is outside a box (left, top, right, bottom), 0 to 1."""
    mask_values = np.asarray(mask, dtype=float)
    return float(1 - np.asarray(mask.crop(seen), dtype=float).sum() / mask_values.sum())


def _save_photograph(folder: Path, index: int, image: Image.Image, mask: Image.Image) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{index:02d}.png")
    mask.save(folder / f"{index:02d}{MASK_SUFFIX}")


_WRITERS: dict[str, Callable[[Path, int], None]] = {
    SQUARES: _write_squares,
    ONE_PLACE: _write_one_place,
    ASPECTS: _write_aspects,
}
