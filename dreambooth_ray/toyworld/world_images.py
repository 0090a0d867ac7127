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
from dreambooth_ray.toyworld.world import Scene, Subject, random_scene, random_subject, render_image

SCENES_EACH = 3
SIZE_PX = 64
HEADS = {
    "class": len(CLASSES),
    "colour": len(COLOUR_NAMES),
    "pattern": len(PATTERNS),
    "background": len(BACKGROUND_NAMES),
    "hat": 2,
}


def describe_image(seed: int, index: int) -> tuple[Subject, Scene]:
    """What image `index` shows."""
    return random_subject(seed, index // SCENES_EACH), random_scene(seed, index)


def attribute_labels(subject: Subject, scene: Scene) -> list[int]:
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
    on_device = torch.from_numpy(pixels).to(device or "cpu")
    return on_device.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def _render_block(seed: int, start: int, stop: int) -> np.ndarray:
    return np.stack(
        [np.asarray(render_image(*describe_image(seed, k))) for k in range(start, stop)]
    )


def generate_images(path: Path, seed: int, count: int, workers: int = 2) -> np.ndarray:
    """The first `count` images of the world as (count, 64, 64, 3) uint8, from `path` if there."""
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        shape = (count, SIZE_PX, SIZE_PX, 3)
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        starts = list(range(0, count, 500))
        stops = [min(s + 500, count) for s in starts]
        with ProcessPoolExecutor(workers) as pool:
            blocks = pool.map(_render_block, [seed] * len(starts), starts, stops)
            for start, stop, block in zip(starts, stops, blocks, strict=True):
                out[start:stop] = block
        out.flush()
        partial.rename(path)
    images: np.ndarray = np.load(path, mmap_mode="r")
    return images
