"""Configuration files of a model directory's parts, with the defaults of diffusers' classes.

Published files leave keys out: Stable Diffusion 1.5's scheduler names no prediction_type, and its
VAE no scaling_factor. Nothing heavy is imported here, as in `model_directory`.
"""

import json
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError

CONFIG_FILES = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "text_encoder_2": "config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
# What UNet2DConditionModel, AutoencoderKL, CLIPTextConfig and DDPMScheduler take where a key is
# not there, as far as files are read without them; a test compares.
DEFAULTS: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": None,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "attention_head_dim": 8,
        "cross_attention_dim": 1280,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
        "class_embed_type": None,
        "num_class_embeds": None,
        "encoder_hid_dim": None,
    },
    "vae": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [64],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "projection_dim": 512,
        "hidden_act": "quick_gelu",
    },
    "tokenizer": {},
    "scheduler": {"prediction_type": "epsilon", "num_train_timesteps": 1000},
}
# Of a UNet that names no sample_size.
SAMPLE_SIZE = 64


def read_part_config(directory: Path, part: str) -> dict[str, Any]:
    """The configuration of a part, with the keys of DEFAULTS at the least.

    raises: ConfigError naming the file that is missing or no JSON object
    """
    return DEFAULTS[strip_part_number(part)] | read_json(directory / part / CONFIG_FILES[part])


def strip_part_number(part: str) -> str:
    """The first part of a part's kind: text_encoder of text_encoder_2."""
    return part.removesuffix("_2")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; raises ConfigError naming it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; copy the whole model directory again") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} can't be read ({error}); copy the model directory again"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object; copy the model directory again")
    return content
