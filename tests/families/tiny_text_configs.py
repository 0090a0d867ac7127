"""Published configurations of text encoders made small, as `tiny_configs` has the other parts."""

from typing import Any

Config = dict[str, Any]
WIDTH = 16  # of a text encoder, and of the first block of a UNet or an autoencoder


def shrink_clip(config: Config) -> Config:
    """The second encoder of SDXL becomes wider than the first one, as it is."""
    width = WIDTH if config["hidden_size"] <= 768 else 2 * WIDTH
    small = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    return config | small | {"num_attention_heads": 2, "num_hidden_layers": 3}


def shrink_qwen(config: Config, num_hidden_layers: int = 3) -> Config:
    return config | {
        "head_dim": 8,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "max_window_layers": num_hidden_layers,
        "num_attention_heads": 4,
        "num_hidden_layers": num_hidden_layers,
        "num_key_value_heads": 2,
    }


def shrink_deep_qwen(config: Config) -> Config:
    """FLUX.2 Klein reads hidden states 9, 18 and 27: 28 layers have them all. Of 512 tokens, so
    that narrow ones keep recordings small."""
    return shrink_qwen(config, num_hidden_layers=28) | {"hidden_size": WIDTH // 2}


def shrink_mistral3(config: Config) -> Config:
    """FLUX.2 dev reads hidden states 10, 20 and 30; as narrow as Klein's."""
    text = {
        "head_dim": 8,
        "hidden_size": WIDTH // 2,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "num_hidden_layers": 31,
        "num_key_value_heads": 2,
    }
    vision = {
        "head_dim": 8,
        "hidden_size": WIDTH,
        "image_size": 32,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 4,
    }
    return config | {
        "text_config": config["text_config"] | text,
        "vision_config": config["vision_config"] | vision,
    }


def shrink_t5(config: Config, width: int = WIDTH) -> Config:
    # Published files name their class, but for those that somebody cleaned.
    small = {"architectures": ["T5EncoderModel"], "d_ff": 2 * WIDTH, "d_kv": 8, "d_model": width}
    return config | small | {"num_decoder_layers": 2, "num_heads": 2, "num_layers": 2}


def shrink_wide_t5(config: Config) -> Config:
    """SD 3 lays the two CLIP encoders' features, side by side, into its width."""
    return shrink_t5(config, width=3 * WIDTH)


def shrink_qwen_vl(config: Config) -> Config:
    """Its language model has its keys inside, and outside once more."""
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "max_window_layers": 3,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        # Their sum is half the width of a head.
        "rope_scaling": config["rope_scaling"] | {"mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "patch_size": 4,
        "spatial_patch_size": 4,
    }
    inner = config["text_config"] | text | {"layer_types": ["full_attention"] * 3}
    return config | text | {"text_config": inner, "vision_config": config["vision_config"] | vision}


def shrink_qwen3_vl(config: Config) -> Config:
    """Narrow, so that many layers of 512 tokens keep recordings small."""
    text = {
        "head_dim": 8,
        "hidden_size": WIDTH // 2,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        # Their sum is half the width of a head.
        "rope_scaling": config["text_config"]["rope_scaling"] | {"mrope_section": [2, 1, 1]},
    }
    vision = {
        "deepstack_visual_indexes": [0],
        "depth": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": WIDTH // 2,
        "patch_size": 4,
    }
    return config | {
        "text_config": config["text_config"] | text,
        "vision_config": config["vision_config"] | vision,
    }


def shrink_gemma(config: Config) -> Config:
    return config | {
        "head_dim": 8,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 8,
    }
