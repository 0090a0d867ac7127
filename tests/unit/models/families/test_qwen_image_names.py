"""Adapters of every layer, read by diffusers' own converter of kohya's names."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_qwen_lora_to_diffusers

from dreambooth_ray.bundles.kohya import rename_weights
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families.qwen_image import FAMILY
from dreambooth_ray.models.families.qwen_image_checks import list_transformer_shapes
from dreambooth_ray.models.families.qwen_image_names import find_kohya_layer

COUNTS = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2,
    "attention_head_dim": 8, "num_attention_heads": 1, "joint_attention_dim": 6,
}  # fmt: skip
LAYERS = {
    name.removesuffix(".weight"): shape
    for name, shape in list_transformer_shapes(COUNTS).items()
    if len(shape) == 2
}


def make_weights(layers: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{layer}.lora_{letter}.weight": torch.randn(size, generator=generator)
        for layer, (height, width) in layers.items()
        for letter, size in (("A", (2, width)), ("B", (height, 2)))
    }


def test_diffusers_reads_what_each_layer_learnt() -> None:
    weights = make_weights(LAYERS)
    assert FAMILY.kohya_names is not None
    renamed = rename_weights(FAMILY.kohya_names, Path(), "transformer", weights, alpha=3.0)
    read = _convert_non_diffusers_qwen_lora_to_diffusers(dict(renamed))
    for layer in LAYERS:
        down, up = (weights[f"{layer}.lora_{x}.weight"] for x in "AB")
        read_down, read_up = (read.pop(f"transformer.{layer}.lora_{x}.weight") for x in "AB")
        assert torch.allclose(read_up @ read_down, 3 / 2 * up @ down, atol=1e-5)
    assert not read


# Of files that people share.
SHARED = {
    "attn.to_out.0": "attn_to_out_0",
    "attn.add_k_proj": "attn_add_k_proj",
    "img_mlp.net.0.proj": "img_mlp_net_0_proj",
    "txt_mlp.net.2": "txt_mlp_net_2",
}


@pytest.mark.parametrize("layer", SHARED)
def test_names_are_those_of_shared_files(layer: str) -> None:
    place = find_kohya_layer(Path(), "transformer", f"transformer_blocks.1.{layer}")
    assert place is not None
    assert place.name == f"lora_unet_transformer_blocks_1_{SHARED[layer]}"
    assert (place.part, place.shares) == (0, (1,))


def test_layers_that_readers_pass_over_are_refused() -> None:
    assert FAMILY.kohya_names is not None
    for layer in ("pos_embed", "transformer_blocks.0.attn.to_b", "txt_norm"):
        weights = make_weights({layer: [4, 4]})
        with pytest.raises(ConfigError, match=rf"no adapter of {layer} "):
            rename_weights(FAMILY.kohya_names, Path(), "transformer", weights, alpha=1.0)
