"""Photographs of a toy-world subject as files, as input for training."""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.toyworld.attributes import CLASSES
from dreambooth_ray.toyworld.world import random_subject, render_photographs


def write_photographs(
    folder: Path, subject_seed: int, class_noun: str, count: int, size_px: int
) -> str:
    """Write `count` PNG photographs; returns what the subject is, in words.

    raises: ConfigError for a class noun the world does not know
    """
    if class_noun and class_noun not in CLASSES:
        raise ConfigError(
            f"--class-noun={class_noun!r} is not in the toy world; take one of {', '.join(CLASSES)}"
        )
    subject = random_subject(subject_seed, class_noun=class_noun or None)
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(render_photographs(subject, subject_seed, count, size_px)):
        image.save(folder / f"{k:02d}.png")
    return f"{subject.colour} {subject.pattern} {subject.class_noun}"
