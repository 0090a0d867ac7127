"""Published configurations made small: every key stays, widths and numbers of layers shrink."""

from collections.abc import Callable

from tests.families.tiny_text_configs import (
    WIDTH,
    Config,
    shrink_clip,
    shrink_deep_qwen,
    shrink_gemma,
    shrink_mistral3,
    shrink_qwen,
    shrink_qwen3_vl,
    shrink_qwen_vl,
    shrink_t5,
    shrink_wide_t5,
)

_GROUPS = 8  # of group norms


def shrink_vae(config: Config) -> Config:
    """Four blocks stay, so that a latent is an eighth of the image."""
    blocks = [WIDTH] * len(config["block_out_channels"])
    return config | {
        "block_out_channels": blocks,
        "layers_per_block": 1,
        "norm_num_groups": _GROUPS,
        "sample_size": 64,
    }


def shrink_flow_vae(config: Config) -> Config:
    return shrink_vae(config) | {"latent_channels": 4}


def shrink_sd_unet(config: Config) -> Config:
    widths = [WIDTH, *[2 * WIDTH] * (len(config["block_out_channels"]) - 1)]
    return config | {
        "attention_head_dim": 2,
        "block_out_channels": widths,
        "cross_attention_dim": WIDTH,
        "layers_per_block": 1,
        "norm_num_groups": _GROUPS,
        "sample_size": 8,
    }


def shrink_sdxl_unet(config: Config) -> Config:
    text_width, time_width = WIDTH + 2 * WIDTH, 8
    return config | {
        "addition_time_embed_dim": time_width,
        "attention_head_dim": [1, 2, 2],  # numbers of heads, as published
        "block_out_channels": [WIDTH, 2 * WIDTH, 2 * WIDTH],
        "cross_attention_dim": text_width,
        "layers_per_block": 1,
        "norm_num_groups": _GROUPS,
        "projection_class_embeddings_input_dim": 6 * time_width + 2 * WIDTH,
        "sample_size": 8,
        "transformer_layers_per_block": [1, 1, 2],
    }


def shrink_flux1(config: Config) -> Config:
    return config | {
        "attention_head_dim": WIDTH,
        "axes_dims_rope": [4, 6, 6],  # a default that goes with the width of a head
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "joint_attention_dim": WIDTH,
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_single_layers": 2,
        "pooled_projection_dim": WIDTH,
    }


def shrink_chroma(config: Config) -> Config:
    return config | {
        "approximator_hidden_dim": WIDTH,
        "approximator_layers": 2,
        "approximator_num_channels": 8,
        "attention_head_dim": WIDTH,
        "axes_dims_rope": [4, 6, 6],
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "joint_attention_dim": WIDTH,
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_single_layers": 2,
    }


def shrink_sd3(config: Config) -> Config:
    return config | {
        "attention_head_dim": WIDTH,
        "caption_projection_dim": 2 * WIDTH,
        "in_channels": 4,
        "joint_attention_dim": 3 * WIDTH,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
        "pooled_projection_dim": 3 * WIDTH,
        "pos_embed_max_size": 16,
        "sample_size": 8,
    }


def shrink_z_image(config: Config) -> Config:
    return config | {
        "axes_dims": [8, 4, 4],  # their sum is the width of a head
        "cap_feat_dim": WIDTH,
        "dim": 2 * WIDTH,
        "in_channels": 4,
        "n_heads": 2,
        "n_kv_heads": 2,
        "n_layers": 2,
        "n_refiner_layers": 1,
    }


def shrink_flux2(config: Config) -> Config:
    return config | {
        "attention_head_dim": WIDTH,
        "axes_dims_rope": [4, 4, 4, 4],
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "joint_attention_dim": 3 * WIDTH // 2,
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_single_layers": 2,
        "timestep_guidance_channels": 32,
    }


def shrink_qwen_image(config: Config) -> Config:
    return config | {
        "attention_head_dim": WIDTH,
        "axes_dims_rope": [4, 6, 6],  # their sum is the width of a head
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "joint_attention_dim": WIDTH,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
    }


def shrink_qwen_vae(config: Config) -> Config:
    """Four blocks stay, so that a latent is an eighth of the image."""
    statistics = {name: config[name][:4] for name in ("latents_mean", "latents_std")}
    return config | statistics | {"base_dim": WIDTH // 4, "num_res_blocks": 1, "z_dim": 4}


def shrink_krea2(config: Config) -> Config:
    return config | {
        "attention_head_dim": WIDTH,
        "axes_dims_rope": [4, 6, 6],  # their sum is the width of a head
        "in_channels": 16,  # 4 channels of latents in patches of 2 by 2
        "intermediate_size": 3 * WIDTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_layers": 2,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "num_text_layers": 3,
        "text_hidden_dim": WIDTH // 2,
        "text_intermediate_size": WIDTH,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "timestep_embed_dim": 32,
    }


def shrink_sana(config: Config) -> Config:
    return config | {
        "attention_head_dim": 8,
        "caption_channels": WIDTH,
        "cross_attention_dim": 2 * WIDTH,  # as wide as the self-attention
        "cross_attention_head_dim": WIDTH,
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
        small[f"{half}_block_out_channels"] = [WIDTH] * 4
        small[f"{half}_layers_per_block"] = [1] * 4
    return config | small


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
    "krea2": {
        "transformer": shrink_krea2,
        "vae": shrink_qwen_vae,
        "text_encoder": shrink_qwen3_vl,
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
