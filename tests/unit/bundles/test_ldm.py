"""Names as they stand in the published v1-5-pruned.safetensors and v2-1_512-ema-pruned."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth_ray.bundles import ldm
from dreambooth_ray.models.single_file_names import (
    OPEN_CLIP_PREFIX,
    XL_OPEN_CLIP_PREFIX,
    SingleFileEncoderNames,
)
from tests.families.published_sizes import PUBLISHED_MODELS

BLOCKS = (320, 640, 1280, 1280)


def test_names_of_stable_diffusion_1_5() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, block_out_channels=BLOCKS)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    names = ldm.convert_unet(unet.state_dict())
    assert len(names) == len(unet.state_dict()) == 686
    model = "model.diffusion_model."
    for name, shape in {
        "time_embed.2.weight": (1280, 1280),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        "middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
        "out.2.weight": (4, 320, 3, 3),
    }.items():
        assert tuple(names[model + name].shape) == shape, name
    first = "first_stage_model."
    stage = ldm.convert_vae(vae.state_dict())
    assert len(stage) == 248
    assert tuple(stage[first + "decoder.up.1.block.0.nin_shortcut.weight"].shape) == (
        256,
        512,
        1,
        1,
    )
    assert tuple(stage[first + "encoder.mid.attn_1.q.weight"].shape) == (512, 512, 1, 1)
    assert first + "decoder.up.3.upsample.conv.weight" in stage
    assert first + "decoder.up.0.upsample.conv.weight" not in stage
    assert first + "quant_conv.weight" in stage


def test_names_of_open_clip() -> None:
    with torch.device("meta"):
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                           num_attention_heads=2, vocab_size=100)
        )  # fmt: skip
    names = ldm.convert_text_encoder(
        text.state_dict(), SingleFileEncoderNames("open_clip", OPEN_CLIP_PREFIX)
    )
    block = "cond_stage_model.model.transformer.resblocks.1."
    assert tuple(names[block + "attn.in_proj_weight"].shape) == (192, 64)
    assert tuple(names[block + "attn.in_proj_bias"].shape) == (192,)
    assert tuple(names[block + "mlp.c_fc.weight"].shape) == (128, 64)
    assert tuple(names["cond_stage_model.model.positional_embedding"].shape) == (77, 64)
    assert "cond_stage_model.model.ln_final.bias" in names
    assert len(names) == 2 * 12 + 4


def test_names_of_stable_diffusion_xl() -> None:
    """As they stand in the published sd_xl_base_1.0.safetensors."""
    parts = {p: PUBLISHED_MODELS["sdxl"].build_on_meta(p) for p in ("unet", "text_encoder_2")}
    names = ldm.convert_unet(parts["unet"].state_dict())
    assert len(names) == len(parts["unet"].state_dict()) == 1680
    model = "model.diffusion_model."
    for name, shape in {
        "label_emb.0.0.weight": (1280, 2816),
        "label_emb.0.2.bias": (1280,),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "input_blocks.8.1.transformer_blocks.9.ff.net.2.weight": (1280, 5120),
        "middle_block.1.proj_in.weight": (1280, 1280),
        "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
    }.items():
        assert tuple(names[model + name].shape) == shape, name
    place = SingleFileEncoderNames("open_clip", XL_OPEN_CLIP_PREFIX)
    text = ldm.convert_text_encoder(parts["text_encoder_2"].state_dict(), place)
    prefix = "conditioner.embedders.1.model."
    assert tuple(text[f"{prefix}text_projection"].shape) == (1280, 1280)
    assert tuple(text[f"{prefix}transformer.resblocks.31.attn.in_proj_weight"].shape) == (
        3840,
        1280,
    )
    assert len(text) == 32 * 12 + 5
