"""Published configurations made small: every key stays, widths and numbers of layers shrink."""

from collections.abc import Callable
from typing import Any

Config = dict[str, Any]
_WIDTH = 16  # of a text encoder, and of the first block of a UNet or an autoencoder
_GROUPS = 8  # of group norms


def shrink_vae(config: Config) -> Config:
    """Four blocks stay, so that a latent is an eighth of the image."""
    blocks = [_WIDTH] * len(config["block_out_channels"])
    return config | {
        "block_out_channels": blocks,
        "layers_per_block": 1,
        "norm_num_groups": _GROUPS,
        "sample_size": 64,
    }


def shrink_flow_vae(config: Config) -> Config:
    return shrink_vae(config) | {"latent_channels": 4}


def shrink_clip(config: Config) -> Config:
    """The second encoder of SDXL becomes wider than the first one, as it is."""
    width = _WIDTH if config["hidden_size"] <= 768 else 2 * _WIDTH
    small = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    return config | small | {"num_attention_heads": 2, "num_hidden_layers": 3}


def shrink_qwen(config: Config, num_hidden_layers: int = 3) -> Config:
    return config | {
        "head_dim": 8,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "max_window_layers": num_hidden_layers,
        "num_attention_heads": 4,
        "num_hidden_layers": num_hidden_layers,
        "num_key_value_heads": 2,
    }


def shrink_deep_qwen(config: Config) -> Config:
    """FLUX.2 Klein reads hidden states 9, 18 and 27: 28 layers have them all. Of 512 tokens, so
    that narrow ones keep recordings small."""
    return shrink_qwen(config, num_hidden_layers=28) | {"hidden_size": _WIDTH // 2}


def shrink_mistral3(config: Config) -> Config:
    """FLUX.2 dev reads hidden states 10, 20 and 30; as narrow as Klein's."""
    text = {
        "head_dim": 8,
        "hidden_size": _WIDTH // 2,
        "intermediate_size": 2 * _WIDTH,
        "num_attention_heads": 4,
        "num_hidden_layers": 31,
        "num_key_value_heads": 2,
    }
    vision = {
        "head_dim": 8,
        "hidden_size": _WIDTH,
        "image_size": 32,
        "intermediate_size": 2 * _WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 4,
    }
    return config | {
        "text_config": config["text_config"] | text,
        "vision_config": config["vision_config"] | vision,
    }


def shrink_sd_unet(config: Config) -> Config:
    widths = [_WIDTH, *[2 * _WIDTH] * (len(config["block_out_channels"]) - 1)]
    return config | {
        "attention_head_dim": 2,
        "block_out_channels": widths,
        "cross_attention_dim": _WIDTH,
        "layers_per_block": 1,
        "norm_num_groups": _GROUPS,
        "sample_size": 8,
    }


def shrink_sdxl_unet(config: Config) -> Config:
    text_width, time_width = _WIDTH + 2 * _WIDTH, 8
    return config | {
        "addition_time_embed_dim": time_width,
        "attention_head_dim": [1, 2, 2],  # numbers of heads, as published
        "block_out_channels": [_WIDTH, 2 * _WIDTH, 2 * _WIDTH],
        "cross_attention_dim": text_width,
        "layers_per_block": 1,
        "norm_num_groups": _GROUPS,
        "projection_class_embeddings_input_dim": 6 * time_width + 2 * _WIDTH,
        "sample_size": 8,
        "transformer_layers_per_block": [1, 1, 2],
    }


def shrink_t5(config: Config, width: int = _WIDTH) -> Config:
    # Published files name their class, but for those that somebody cleaned.
    small = {"architectures": ["T5EncoderModel"], "d_ff": 2 * _WIDTH, "d_kv": 8, "d_model": width}
    return config | small | {"num_decoder_layers": 2, "num_heads": 2, "num_layers": 2}


def shrink_wide_t5(config: Config) -> Config:
    """SD 3 lays the two CLIP encoders' features, side by side, into its width."""
    return shrink_t5(config, width=3 * _WIDTH)


def shrink_flux1(config: Config) -> Config:
    return config | {
        "attention_head_dim": _WIDTH,
        "axes_dims_rope": [4, 6, 6],  # a default that goes with the width of a head
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "joint_attention_dim": _WIDTH,
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_single_layers": 2,
        "pooled_projection_dim": _WIDTH,
    }


def shrink_chroma(config: Config) -> Config:
    return config | {
        "approximator_hidden_dim": _WIDTH,
        "approximator_layers": 2,
        "approximator_num_channels": 8,
        "attention_head_dim": _WIDTH,
        "axes_dims_rope": [4, 6, 6],
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "joint_attention_dim": _WIDTH,
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_single_layers": 2,
    }


def shrink_sd3(config: Config) -> Config:
    return config | {
        "attention_head_dim": _WIDTH,
        "caption_projection_dim": 2 * _WIDTH,
        "in_channels": 4,
        "joint_attention_dim": 3 * _WIDTH,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
        "pooled_projection_dim": 3 * _WIDTH,
        "pos_embed_max_size": 16,
        "sample_size": 8,
    }


def shrink_z_image(config: Config) -> Config:
    return config | {
        "axes_dims": [8, 4, 4],  # their sum is the width of a head
        "cap_feat_dim": _WIDTH,
        "dim": 2 * _WIDTH,
        "in_channels": 4,
        "n_heads": 2,
        "n_kv_heads": 2,
        "n_layers": 2,
        "n_refiner_layers": 1,
    }


def shrink_flux2(config: Config) -> Config:
    return config | {
        "attention_head_dim": _WIDTH,
        "axes_dims_rope": [4, 4, 4, 4],
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "joint_attention_dim": 3 * _WIDTH // 2,
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_single_layers": 2,
        "timestep_guidance_channels": 32,
    }


def shrink_qwen_image(config: Config) -> Config:
    return config | {
        "attention_head_dim": _WIDTH,
        "axes_dims_rope": [4, 6, 6],  # their sum is the width of a head
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "joint_attention_dim": _WIDTH,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
    }


def shrink_qwen_vae(config: Config) -> Config:
    """Four blocks stay, so that a latent is an eighth of the image."""
    statistics = {name: config[name][:4] for name in ("latents_mean", "latents_std")}
    return config | statistics | {"base_dim": _WIDTH // 4, "num_res_blocks": 1, "z_dim": 4}


def shrink_qwen_vl(config: Config) -> Config:
    """Its language model has its keys inside, and outside once more."""
    text = {
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "max_window_layers": 3,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        # Their sum is half the width of a head.
        "rope_scaling": config["rope_scaling"] | {"mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 2,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_heads": 2,
        "out_hidden_size": _WIDTH,
        "patch_size": 4,
        "spatial_patch_size": 4,
    }
    inner = config["text_config"] | text | {"layer_types": ["full_attention"] * 3}
    return config | text | {"text_config": inner, "vision_config": config["vision_config"] | vision}


def shrink_sana(config: Config) -> Config:
    return config | {
        "attention_head_dim": 8,
        "caption_channels": _WIDTH,
        "cross_attention_dim": 2 * _WIDTH,  # as wide as the self-attention
        "cross_attention_head_dim": _WIDTH,
        "in_channels": 4,
        "num_attention_heads": 4,
        "num_cross_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
    }


def shrink_dc_vae(config: Config) -> Config:
    """Four of six blocks stay, so that a latent is an eighth of the image."""
    small: Config = {"attention_head_dim": 8, "latent_channels": 4}
    for half in ("encoder", "decoder"):
        for key in ("block_types", "qkv_multiscales"):
            small[f"{half}_{key}"] = config[f"{half}_{key}"][2:]
        small[f"{half}_block_out_channels"] = [_WIDTH] * 4
        small[f"{half}_layers_per_block"] = [1] * 4
    return config | small


def shrink_gemma(config: Config) -> Config:
    return config | {
        "head_dim": 8,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 8,
    }


SHRINK: dict[str, dict[str, Callable[[Config], Config]]] = {
    "sd15": {"unet": shrink_sd_unet, "vae": shrink_vae, "text_encoder": shrink_clip},
    "sdxl": {
        "unet": shrink_sdxl_unet,
        "vae": shrink_vae,
        "text_encoder": shrink_clip,
        "text_encoder_2": shrink_clip,
    },
    "flux1": {
        "transformer": shrink_flux1,
        "vae": shrink_flow_vae,
        "text_encoder": shrink_clip,
        "text_encoder_2": shrink_t5,
    },
    "chroma": {
        "transformer": shrink_chroma,
        "vae": shrink_flow_vae,
        "text_encoder": shrink_t5,
    },
    "sd3": {
        "transformer": shrink_sd3,
        "vae": shrink_flow_vae,
        "text_encoder": shrink_clip,
        "text_encoder_2": shrink_clip,
        "text_encoder_3": shrink_wide_t5,
    },
    "z-image": {
        "transformer": shrink_z_image,
        "vae": shrink_flow_vae,
        "text_encoder": shrink_qwen,
    },
    "qwen-image": {
        "transformer": shrink_qwen_image,
        "vae": shrink_qwen_vae,
        "text_encoder": shrink_qwen_vl,
    },
    "sana": {
        "transformer": shrink_sana,
        "vae": shrink_dc_vae,
        "text_encoder": shrink_gemma,
    },
    "flux2-klein": {
        "transformer": shrink_flux2,
        "vae": shrink_flow_vae,
        "text_encoder": shrink_deep_qwen,
    },
    "flux2-dev": {
        "transformer": shrink_flux2,
        "vae": shrink_flow_vae,
        "text_encoder": shrink_mistral3,
    },
}
