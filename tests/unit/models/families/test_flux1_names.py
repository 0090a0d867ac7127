"""Adapters of every layer of FLUX.1 against files of kohya's sd-scripts."""

from pathlib import Path

import torch

from dreambooth_ray.bundles.kohya import rename_weights
from dreambooth_ray.models.families.flux1 import FAMILY
from dreambooth_ray.models.families.flux1_checks import list_transformer_shapes
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.unit.models.families.kohya_layers import make_weights

CONFIG = PUBLISHED_MODELS["flux1-dev"].part_config("transformer")
SHAPES = list_transformer_shapes(CONFIG, embeds_guidance=True)
# Readers of kohya's files know adapters of blocks alone.
LAYERS = {
    name.removesuffix(".weight"): shape
    for name, shape in SHAPES.items()
    if len(shape) == 2 and "transformer_blocks" in name
}
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
