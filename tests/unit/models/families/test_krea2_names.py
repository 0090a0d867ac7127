"""Krea 2's layers under its authors' names, held against diffusers' own converter of them."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_krea2_lora_to_diffusers,
)

from dreambooth_ray.models.families.krea2_checks import list_transformer_shapes
from dreambooth_ray.models.families.krea2_names import list_adapter_layer_names
from tests.families.published_sizes import PUBLISHED_MODELS

LAYERS = [
    name.removesuffix(".weight")
    for name, shape in list_transformer_shapes(
        PUBLISHED_MODELS["krea2"].part_config("transformer")
    ).items()
    if len(shape) == 2 and name.endswith(".weight")
]


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model."])
def test_diffusers_reads_every_layer_by_its_authors_name(prefix: str) -> None:
    names = {layer: list_adapter_layer_names(Path(), layer)[0].name for layer in LAYERS}
    assert len(set(names.values())) == len(LAYERS)
    weights = {
        f"{prefix}{name}.lora_A.weight": torch.full((1,), float(number))
        for number, name in enumerate(names.values())
    }
    read = _convert_non_diffusers_krea2_lora_to_diffusers(weights)
    for number, layer in enumerate(names):
        assert read.pop(f"transformer.{layer}.lora_A.weight").item() == number
    assert not read


@pytest.mark.parametrize("layer", ["transformer_blocks.0.x", "other", "text_fusion.0.norm1"])
def test_what_is_no_layer_has_no_name(layer: str) -> None:
    assert list_adapter_layer_names(Path(), layer) == []
