"""Adapters of every layer, by diffusers' own converter of kohya's names and against real files.

That converter knows the published width alone.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

from dreambooth_ray.bundles.kohya import rename_weights
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families.flux1 import FAMILY
from dreambooth_ray.models.families.flux1_checks import expect_transformer
from tests.families.published_sizes import PUBLISHED_MODELS

CONFIG = PUBLISHED_MODELS["flux1-dev"].part_config("transformer")
SHAPES = expect_transformer(CONFIG, embeds_guidance=True)
# Readers of kohya's files know adapters of blocks alone.
LAYERS = {
    name.removesuffix(".weight"): shape
    for name, shape in SHAPES.items()
    if len(shape) == 2 and "transformer_blocks" in name
}
OF_ONE_BLOCK = {name: shape for name, shape in LAYERS.items() if "_blocks.0." in name}
# Of a file that sd-scripts wrote, each with its alpha: number of blocks, width of input and output.
KOHYA_LAYERS = {
    "lora_te1_text_model_encoder_layers_{}_mlp_fc1": (12, 768, 3072),
    "lora_te1_text_model_encoder_layers_{}_mlp_fc2": (12, 3072, 768),
    "lora_te1_text_model_encoder_layers_{}_self_attn_k_proj": (12, 768, 768),
    "lora_te1_text_model_encoder_layers_{}_self_attn_out_proj": (12, 768, 768),
    "lora_te1_text_model_encoder_layers_{}_self_attn_q_proj": (12, 768, 768),
    "lora_te1_text_model_encoder_layers_{}_self_attn_v_proj": (12, 768, 768),
    "lora_unet_double_blocks_{}_img_attn_proj": (19, 3072, 3072),
    "lora_unet_double_blocks_{}_img_attn_qkv": (19, 3072, 9216),
    "lora_unet_double_blocks_{}_img_mlp_0": (19, 3072, 12288),
    "lora_unet_double_blocks_{}_img_mlp_2": (19, 12288, 3072),
    "lora_unet_double_blocks_{}_img_mod_lin": (19, 3072, 18432),
    "lora_unet_double_blocks_{}_txt_attn_proj": (19, 3072, 3072),
    "lora_unet_double_blocks_{}_txt_attn_qkv": (19, 3072, 9216),
    "lora_unet_double_blocks_{}_txt_mlp_0": (19, 3072, 12288),
    "lora_unet_double_blocks_{}_txt_mlp_2": (19, 12288, 3072),
    "lora_unet_double_blocks_{}_txt_mod_lin": (19, 3072, 18432),
    "lora_unet_single_blocks_{}_linear1": (38, 3072, 21504),
    "lora_unet_single_blocks_{}_linear2": (38, 15360, 3072),
    "lora_unet_single_blocks_{}_modulation_lin": (38, 3072, 9216),
}


def make_weights(layers: dict[str, list[int]], **options: Any) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.lora_{letter}.weight": torch.randn(size, **options)
        for layer, (height, width) in layers.items()
        for letter, size in (("A", (1, width)), ("B", (height, 1)))
    }


@pytest.mark.parametrize("only", ["", "to_k", "proj_mlp"])
def test_diffusers_reads_what_each_layer_learnt(only: str) -> None:
    layers = {name: shape for name, shape in OF_ONE_BLOCK.items() if name.endswith(only)}
    weights = make_weights(layers, generator=torch.Generator().manual_seed(0))
    assert FAMILY.kohya_names is not None
    renamed = rename_weights(FAMILY.kohya_names, Path(), "transformer", weights, alpha=3.0)
    read = _convert_kohya_flux_lora_to_diffusers(dict(renamed))
    for layer in layers:
        down, up = (weights[f"{layer}.lora_{x}.weight"] for x in "AB")
        read_down, read_up = (read.pop(f"transformer.{layer}.lora_{x}.weight") for x in "AB")
        assert torch.allclose(read_up @ read_down, 3 * up @ down, atol=1e-4)
    # What nobody trained comes with its neighbours, and does nothing.
    assert all(not w.any() for name, w in read.items() if "lora_B" in name)
    assert bool(read) == bool(only)


def test_every_layer_has_the_name_and_shape_of_sd_scripts_files() -> None:
    assert FAMILY.kohya_names is not None
    clip = PUBLISHED_MODELS["flux1-dev"].build_on_meta("text_encoder")
    clip_layers = {
        name: list(module.weight.shape)
        for name, module in clip.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    written: dict[str, tuple[int, ...]] = {}
    for part, layers in (("transformer", LAYERS), ("text_encoder", clip_layers)):
        weights = make_weights(layers, device="meta")
        renamed = rename_weights(FAMILY.kohya_names, Path(), part, weights, alpha=1.0)
        written |= {name: tuple(weight.shape) for name, weight in renamed.items()}
    for name, (num_blocks, inputs, outputs) in KOHYA_LAYERS.items():
        for block in range(num_blocks):
            layer = name.format(block)
            rank, width = written.pop(f"{layer}.lora_down.weight")
            assert (width, written.pop(f"{layer}.lora_up.weight")) == (inputs, (outputs, rank))
            assert written.pop(f"{layer}.alpha") == ()
    assert not written


def test_layers_that_readers_pass_over_are_refused() -> None:
    assert FAMILY.kohya_names is not None
    for layer in ("norm_out.linear", "x_embedder", "transformer_blocks.0.x"):
        with pytest.raises(ConfigError, match=rf"no adapter of {layer} "):
            rename_weights(
                FAMILY.kohya_names, Path(), "transformer", make_weights({layer: [4, 4]}), alpha=1.0
            )
