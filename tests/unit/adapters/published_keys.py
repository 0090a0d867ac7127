"""Keys and shapes of adapters that people have published, and tensors of those shapes.

`lora_keys.json` has them in short: [key, shape], or [key, shape, ranges], where # is each number.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dreambooth_ray.adapters.binding import BoundAdapterFile
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.models.families.flux1 import FAMILY as FLUX1
from dreambooth_ray.models.family import ModelFamily
from tests.families.tiny_models import FAMILY_CONFIGS, build_network

Shapes = dict[str, tuple[int, ...]]
_LISTS = Path(__file__).with_name("lora_keys.json")


def list_names() -> list[str]:
    return sorted(json.loads(_LISTS.read_text()))


def read_shapes(name: str) -> Shapes:
    shapes: Shapes = {}
    for key, shape, *ranges in json.loads(_LISTS.read_text())[name]:
        numbers = [n for begin, end in (ranges or [[]])[0] for n in range(begin, end + 1)]
        for full_key in [key.replace("#", str(n)) for n in numbers] or [key]:
            shapes[full_key] = tuple(shape)
    return shapes


@cache
def published_flux1() -> LayerTable:
    """FLUX.1 dev's layers, by its published configurations; no weight is there."""
    return build_table(FLUX1, FAMILY_CONFIGS / "flux.1-dev")


def build_table(
    family: ModelFamily, directory: Path, change: Callable[[Any], Any] = lambda config: config
) -> LayerTable:
    shapes = {}
    for part in (family.denoiser, *family.text_encoders):
        config = json.loads((directory / part.name / "config.json").read_text())
        config.setdefault("architectures", [part.class_name])
        with torch.device("meta"):
            network = build_network(change(config))
        shapes[part.name] = {n: tuple(p.shape) for n, p in network.named_parameters()}
    return LayerTable(family, shapes, directory)


def make_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random ones: factors small, alphas of half the rank about four, magnitudes near one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith(".alpha"):
            noise = torch.tensor(2.0)
        elif "dora_scale" in key or "magnitude" in key:
            noise = 1 + 0.1 * noise
        else:
            noise = 0.3 * noise
        tensors[key] = noise
    return tensors


def write_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def shrink_shapes(binding: BoundAdapterFile, table: LayerTable, rank: int = 2) -> Shapes:
    """A file's keys as they would be for a smaller model with layers of the same names.

    binding: to the published model's layers; table: the smaller one's. Blocks that it has not are
    left out.
    """
    shapes: Shapes = {}
    for bound in binding.layers:
        places = table.find(bound.file_layer)
        if len(places) != len(bound.places):
            continue
        size = (places[0].num_file_rows, places[0].shape[1])
        sizes = {
            "down": (rank, size[1]), "up": (size[0], rank), "alpha": (),
            "dora_scale": (1, size[1]),
        }  # fmt: skip
        shapes |= {key: sizes[role] for role, key in bound.keys.items()}
    return shapes
