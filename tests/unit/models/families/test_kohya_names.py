"""Adapters of every layer of a transformer, read by diffusers' own converter of kohya's names."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_kohya_flux_lora_to_diffusers,
    _convert_non_diffusers_z_image_lora_to_diffusers,
)

from dreambooth_ray.bundles.kohya import rename_weights
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families import flux1, flux1_checks, flux2_klein, z_image, z_image_checks
from dreambooth_ray.models.families.flux2_checks import list_transformer_shapes
from dreambooth_ray.models.family import ModelFamily
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.unit.models.families.kohya_layers import RANK, make_weights

Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class NamedLayers:
    """shapes: of all weights by name; is_read: whether readers know an adapter of a layer

    convert: diffusers'; unread: layers of no adapter; parts: ends of names of layers that share a
    matrix with others there
    """

    family: ModelFamily
    shapes: Shapes
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    is_read: Callable[[str], bool]
    unread: tuple[str, ...]
    parts: tuple[str, ...] = ("to_k",)

    @property
    def layers(self) -> Shapes:
        return {
            name.removesuffix(".weight"): shape
            for name, shape in self.shapes.items()
            if len(shape) == 2 and self.is_read(name)
        }


NAMED_LAYERS = {
    # The converter knows the published width alone: a block of it is enough.
    "flux1": NamedLayers(
        flux1.FAMILY,
        flux1_checks.list_transformer_shapes(
            PUBLISHED_MODELS["flux1-dev"].part_config("transformer"), embeds_guidance=True
        ),
        _convert_kohya_flux_lora_to_diffusers,
        lambda name: "transformer_blocks.0." in name,
        ("norm_out.linear", "x_embedder", "transformer_blocks.0.x"),
        ("to_k", "proj_mlp"),
    ),
    "flux2-klein": NamedLayers(
        flux2_klein.FAMILY,
        list_transformer_shapes(
            {
                "in_channels": 8, "joint_attention_dim": 12, "num_layers": 2,
                "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 4,
                "timestep_guidance_channels": 6,
            },
            embeds_guidance=True,
        ),
        _convert_kohya_flux2_lora_to_diffusers,
        lambda name: not re.search("modulation|norm_out|guidance_embedder", name),
        (
            "norm_out.linear", "single_stream_modulation.linear", "transformer_blocks.0.x",
            "time_guidance_embed.guidance_embedder.linear_1",
        ),
    ),
    "z-image": NamedLayers(
        z_image.FAMILY,
        z_image_checks.list_transformer_shapes(
            {
                "in_channels": 4, "dim": 12, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
                "cap_feat_dim": 6,
            }
        ),
        _convert_non_diffusers_z_image_lora_to_diffusers,
        lambda name: ".attention." in name or ".feed_forward." in name,
        ("cap_embedder.1", "layers.0.adaLN_modulation.0", "t_embedder.mlp.0"),
    ),
}  # fmt: skip


def rename(family: ModelFamily, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    assert family.kohya_names is not None
    return dict(rename_weights(family.kohya_names, Path(), "transformer", weights, alpha=3.0))


@pytest.mark.parametrize(
    ("name", "only"),
    [(name, only) for name, model in NAMED_LAYERS.items() for only in ("", *model.parts)],
)
def test_diffusers_reads_what_each_layer_learnt(name: str, only: str) -> None:
    model = NAMED_LAYERS[name]
    layers = {layer: shape for layer, shape in model.layers.items() if layer.endswith(only)}
    weights = make_weights(layers, generator=torch.Generator().manual_seed(0))
    read = model.convert(rename(model.family, weights))
    for layer in layers:
        down, up = (weights[f"{layer}.lora_{x}.weight"] for x in "AB")
        read_down, read_up = (read.pop(f"transformer.{layer}.lora_{x}.weight") for x in "AB")
        # Of some inputs: the matrices themselves are large.
        inputs = torch.randn(down.shape[1], 4) / down.shape[1] ** 0.5
        learnt = 3 / RANK * up @ (down @ inputs)
        assert torch.allclose(read_up @ (read_down @ inputs), learnt, atol=1e-4)
        assert learnt.abs().max() > 0.1
    # What nobody trained comes with its neighbours, and does nothing.
    assert all(not w.any() for key, w in read.items() if "lora_B" in key)
    assert bool(read) == bool(only)


def test_comfyui_knows_every_layer_by_its_authors_name() -> None:
    """Its key map of Z-Image: lora_unet_ and each weight's name in the authors' network."""
    model = NAMED_LAYERS["z-image"]
    renamed = rename(model.family, make_weights(model.layers))
    blocks = ("layers_0", "layers_1", "noise_refiner_0", "context_refiner_0")
    inner = ("attention_qkv", "attention_out", *(f"feed_forward_w{k}" for k in (1, 2, 3)))
    expected = {f"lora_unet_{block}_{layer}" for block in blocks for layer in inner}
    assert {key.split(".")[0] for key in renamed} == expected


@pytest.mark.parametrize("name", NAMED_LAYERS)
def test_layers_that_readers_pass_over_are_refused(name: str) -> None:
    model = NAMED_LAYERS[name]
    for layer in model.unread:
        with pytest.raises(ConfigError, match=rf"no adapter of {layer} "):
            rename(model.family, make_weights({layer: [4, 4]}))
