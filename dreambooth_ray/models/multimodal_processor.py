"""Bundles keep a processor of which the tokenizer alone is read here."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from dreambooth_ray.models.family import INDEX
from dreambooth_ray.models.part_configs import read_json


def keep_multimodal_processor(pipeline: DiffusionPipeline, name: str, directory: Path) -> None:
    """Have a pipeline write a tokenizer's folder as the base model has it.

    A processor reads images too, and its class wants torchvision, which nothing else does here: the
    pipeline holds its tokenizer in its place, and writes all its files and the name of its class.

    name: of the folder; directory: the base model's
    """
    pipeline.register_to_config(**{name: read_json(directory / INDEX)[name]})
    # A pipeline saves its parts by this method.
    getattr(pipeline, name).save_pretrained = _make_folder_copier(directory / name)


def _make_folder_copier(folder: Path) -> Callable[..., None]:
    def save_pretrained(save_directory: str | Path, **_: Any) -> None:
        shutil.copytree(folder, save_directory, dirs_exist_ok=True)

    return save_pretrained
