"""Adapters of every layer, read by diffusers' own converter of kohya's names."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux2_lora_to_diffusers

from dreambooth_ray.bundles.kohya import rename_weights
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families.flux2_klein import FAMILY
from dreambooth_ray.models.families.flux2_klein_checks import expect_transformer

COUNTS = {
    "in_channels": 8, "joint_attention_dim": 12, "num_layers": 2, "num_single_layers": 3,
    "num_attention_heads": 2, "attention_head_dim": 4, "timestep_guidance_channels": 6,
}  # fmt: skip
# Readers of kohya's files know no adapter of these.
UNREAD = ("modulation", "norm_out")
LAYERS = {
    name.removesuffix(".weight"): shape
    for name, shape in expect_transformer(COUNTS).items()
    if len(shape) == 2 and not any(part in name for part in UNREAD)
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
    read = _convert_kohya_flux2_lora_to_diffusers(dict(renamed))
    for layer in layers:
        down, up = (weights[f"{layer}.lora_{x}.weight"] for x in "AB")
        read_down, read_up = (read.pop(f"transformer.{layer}.lora_{x}.weight") for x in "AB")
        assert torch.allclose(read_up @ read_down, 3 / 2 * up @ down, atol=1e-5)
    # Queries and values that nobody trained come with keys, and do nothing.
    assert all(not w.any() for name, w in read.items() if "lora_B" in name)
    assert bool(read) == (only == "to_k")


def test_layers_that_readers_pass_over_are_refused() -> None:
    assert FAMILY.kohya_names is not None
    for layer in ("norm_out.linear", "single_stream_modulation.linear", "transformer_blocks.0.x"):
        weights = make_weights({layer: [4, 4]})
        with pytest.raises(ConfigError, match=rf"no adapter of {layer} "):
            rename_weights(FAMILY.kohya_names, Path(), "transformer", weights, alpha=1.0)
