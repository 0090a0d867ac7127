"""Adapters of every layer, read by diffusers' own converter of kohya's names."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_z_image_lora_to_diffusers

from dreambooth_ray.bundles.kohya import rename_weights
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families.z_image import FAMILY
from dreambooth_ray.models.families.z_image_checks import expect_transformer

COUNTS = {
    "in_channels": 4, "dim": 12, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
    "cap_feat_dim": 6,
}  # fmt: skip
LAYERS = {
    name.removesuffix(".weight"): shape
    for name, shape in expect_transformer(COUNTS).items()
    if len(shape) == 2 and (".attention." in name or ".feed_forward." in name)
}


def make_weights(layers: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{layer}.lora_{letter}.weight": torch.randn(size, generator=generator)
        for layer, (height, width) in layers.items()
        for letter, size in (("A", (2, width)), ("B", (height, 2)))
    }


@pytest.mark.parametrize("only", ["", "to_k"])
def test_diffusers_reads_what_each_layer_learnt(only: str) -> None:
    layers = {name: shape for name, shape in LAYERS.items() if name.endswith(only)}
    weights = make_weights(layers)
    assert FAMILY.kohya_names is not None
    renamed = rename_weights(FAMILY.kohya_names, Path(), "transformer", weights, alpha=3.0)
    read = _convert_non_diffusers_z_image_lora_to_diffusers(dict(renamed))
    for layer in layers:
        down, up = (weights[f"{layer}.lora_{x}.weight"] for x in "AB")
        read_down, read_up = (read.pop(f"transformer.{layer}.lora_{x}.weight") for x in "AB")
        assert torch.allclose(read_up @ read_down, 3 / 2 * up @ down, atol=1e-5)
    # Queries and values that nobody trained come with keys, and do nothing.
    assert all(not w.any() for name, w in read.items() if "lora_B" in name)
    assert bool(read) == (only == "to_k")


def test_comfyui_knows_every_layer_by_its_authors_name() -> None:
    """Its key map: lora_unet_ and each weight's name in the authors' network."""
    assert FAMILY.kohya_names is not None
    renamed = rename_weights(
        FAMILY.kohya_names, Path(), "transformer", make_weights(LAYERS), alpha=1.0
    )
    blocks = ("layers_0", "layers_1", "noise_refiner_0", "context_refiner_0")
    inner = ("attention_qkv", "attention_out", *(f"feed_forward_w{k}" for k in (1, 2, 3)))
    expected = {f"lora_unet_{block}_{layer}" for block in blocks for layer in inner}
    assert {name.split(".")[0] for name in renamed} == expected


def test_layers_that_readers_pass_over_are_refused() -> None:
    assert FAMILY.kohya_names is not None
    for layer in ("cap_embedder.1", "layers.0.adaLN_modulation.0", "t_embedder.mlp.0"):
        weights = make_weights({layer: [4, 4]})
        with pytest.raises(ConfigError, match=rf"no adapter of {layer} "):
            rename_weights(FAMILY.kohya_names, Path(), "transformer", weights, alpha=1.0)
