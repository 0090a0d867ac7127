"""The pretraining images: generated once, stored in one memory-mapped array.

Image k shows subject k // SCENES_EACH in scene k, so that images of one individual
stand together and the evaluator can learn identity.
"""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreambooth_ray.toyworld.attributes import BACKGROUND_NAMES, CLASSES, COLOUR_NAMES, PATTERNS
from dreambooth_ray.toyworld.world import (
    SceneLayout,
    Subject,
    random_scene_layout,
    random_subject,
    render_image,
)

SCENES_EACH = 3
SIZE_PX = 64
HEADS = {
    "class": len(CLASSES),
    "colour": len(COLOUR_NAMES),
    "pattern": len(PATTERNS),
    "background": len(BACKGROUND_NAMES),
    "hat": 2,
}


def subject_and_scene(seed: int, index: int) -> tuple[Subject, SceneLayout]:
    """What image `index` shows."""
    return random_subject(seed, index // SCENES_EACH), random_scene_layout(seed, index)


def attribute_labels(subject: Subject, scene: SceneLayout) -> list[int]:
    """Truth in the order of HEADS."""
    return [
        CLASSES.index(subject.class_noun),
        COLOUR_NAMES.index(subject.colour),
        PATTERNS.index(subject.pattern),
        BACKGROUND_NAMES.index(scene.background),
        int(scene.hat),
    ]


def to_tensor(pixels: np.ndarray, device: torch.device | None = None) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1], on the device or the CPU."""
    device_pixels = torch.from_numpy(pixels).to(device or "cpu")
    return device_pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def _render_block(seed: int, start: int, stop: int) -> np.ndarray:
    return np.stack(
        [np.asarray(render_image(*subject_and_scene(seed, k))) for k in range(start, stop)]
    )


def generate_images(path: Path, seed: int, count: int, workers: int = 2) -> np.ndarray:
    """The first `count` images of the world as (count, 64, 64, 3) uint8, from `path` if there."""
    if not path.exists():
        partial_path = path.with_suffix(".partial.npy")
        images_shape = (count, SIZE_PX, SIZE_PX, 3)
        image_array = np.lib.format.open_memmap(
            partial_path, mode="w+", dtype=np.uint8, shape=images_shape
        )
        block_starts = list(range(0, count, 500))
        block_stops = [min(s + 500, count) for s in block_starts]
        with ProcessPoolExecutor(workers) as process_pool:
            blocks = process_pool.map(
                _render_block, [seed] * len(block_starts), block_starts, block_stops
            )
            for start, stop, block in zip(block_starts, block_stops, blocks, strict=True):
                image_array[start:stop] = block
        image_array.flush()
        partial_path.rename(path)
    images: np.ndarray = np.load(path, mmap_mode="r")
    return images
