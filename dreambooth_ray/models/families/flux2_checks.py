"""Whether a directory holds a FLUX.2, by its files alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_value_checks import find_bad_value
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.part_configs import DEFAULTS, read_json
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts, repeat_shapes
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.models.weight_shapes import find_mismatch

# Of AutoencoderKLFlux2, where a configuration names none.
VAE_DEFAULTS: dict[str, Any] = DEFAULTS["vae"] | {
    "latent_channels": 32,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "sample_size": 1024,
}
# Latents of the VAE that the transformer takes as one, each way.
PATCH = 2
MAX_TOKENS = 512  # of a prompt with the marks of its message
NUM_TEXT_LAYERS = 3  # whose hidden states are text, side by side
# Of Flux2Transformer2DModel, where a configuration names none.
_DEFAULTS = {
    "in_channels": 128, "joint_attention_dim": 15360, "num_layers": 8, "num_single_layers": 48,
    "num_attention_heads": 48, "attention_head_dim": 128, "timestep_guidance_channels": 256,
}  # fmt: skip
_EMBEDS_GUIDANCE = "guidance_embeds"


def check_networks(directory: Path, family: ModelFamily, check_text: Callable[[], int]) -> None:
    """Of a directory whose parts are there and of their classes.

    check_text: looks at the text encoder, and returns the width of its hidden states
    raises: ConfigError naming the file
    """
    transformer_folder = directory / "transformer"
    path = transformer_folder / "config.json"
    config_counts = read_counts(path, **_DEFAULTS)
    embeds_guidance = read_json(path).get(_EMBEDS_GUIDANCE, True)
    if embeds_guidance is not family.embeds_guidance:
        raise ConfigError(
            f"{path}: {_EMBEDS_GUIDANCE}={embeds_guidance!r} is not of {family.title}, which has "
            f"{str(family.embeds_guidance).lower()}; the parts are of different models"
        )
    check_shapes(
        transformer_folder, list_transformer_shapes(config_counts, embeds_guidance=embeds_guidance)
    )
    text_width = NUM_TEXT_LAYERS * check_text()
    if config_counts["joint_attention_dim"] != text_width:
        raise ConfigError(
            f"{transformer_folder} takes text of width {config_counts['joint_attention_dim']}, and "
            f"three layers of text_encoder/ give {text_width}; the parts are of different models"
        )
    patch_channels = _check_vae(directory / "vae")
    if config_counts["in_channels"] != patch_channels:
        raise ConfigError(
            f"{transformer_folder} takes {config_counts['in_channels']} channels, and vae/ gives "
            f"{patch_channels} in patches of two by two; the parts are of different models"
        )


def _check_vae(folder: Path) -> int:
    """The channels of its latents in patches."""
    path = folder / "config.json"
    vae_config = VAE_DEFAULTS | read_json(path)
    if problem := find_bad_value("vae", vae_config):
        raise ConfigError(f"{path}: {problem}; copy it again")
    patch_channels = int(vae_config["latent_channels"]) * PATCH**2
    stored_shapes = find_weights(folder, "vae").read_shapes()
    problem = find_mismatch("vae", vae_config, stored_shapes)
    if any(
        stored_shapes.get(f"bn.running_{statistic_name}") != [patch_channels]
        for statistic_name in ("mean", "var")
    ):
        problem = problem or f"its weights have no statistics (bn) of {patch_channels} channels"
    if problem:
        raise ConfigError(f"{folder}: {problem}; the files are of different models")
    return patch_channels


def list_transformer_shapes(counts: dict[str, int], *, embeds_guidance: bool) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    head_dim = counts["attention_head_dim"]
    hidden_size = counts["num_attention_heads"] * head_dim
    mlp_width = 3 * hidden_size
    square_shape = [hidden_size, hidden_size]
    qk_norm_shapes = {"attn.norm_q.weight": [head_dim], "attn.norm_k.weight": [head_dim]}
    double_block_shapes: Shapes = {
        **{
            f"attn.{name}.weight": square_shape
            for name in (
                "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj",
                "to_add_out",
            )
        },
        **qk_norm_shapes,
        "attn.norm_added_q.weight": [head_dim],
        "attn.norm_added_k.weight": [head_dim],
        **{
            f"{name}.linear_in.weight": [2 * mlp_width, hidden_size]
            for name in ("ff", "ff_context")
        },
        **{f"{name}.linear_out.weight": [hidden_size, mlp_width] for name in ("ff", "ff_context")},
    }  # fmt: skip
    single_block_shapes: Shapes = {
        "attn.to_qkv_mlp_proj.weight": [3 * hidden_size + 2 * mlp_width, hidden_size],
        "attn.to_out.weight": [hidden_size, hidden_size + mlp_width],
        **qk_norm_shapes,
    }
    embedder_names = ("timestep", "guidance") if embeds_guidance else ("timestep",)
    embedder_shapes: Shapes = {
        "embedder.linear_1.weight": [hidden_size, counts["timestep_guidance_channels"]],
        "embedder.linear_2.weight": square_shape,
    }
    return {
        **{
            f"time_guidance_embed.{name}_{layer}": shape
            for name in embedder_names
            for layer, shape in embedder_shapes.items()
        },
        "double_stream_modulation_img.linear.weight": [6 * hidden_size, hidden_size],
        "double_stream_modulation_txt.linear.weight": [6 * hidden_size, hidden_size],
        "single_stream_modulation.linear.weight": [3 * hidden_size, hidden_size],
        "x_embedder.weight": [hidden_size, counts["in_channels"]],
        "context_embedder.weight": [hidden_size, counts["joint_attention_dim"]],
        **repeat_shapes("transformer_blocks", counts["num_layers"], double_block_shapes),
        **repeat_shapes(
            "single_transformer_blocks", counts["num_single_layers"], single_block_shapes
        ),
        "norm_out.linear.weight": [2 * hidden_size, hidden_size],
        "proj_out.weight": [counts["in_channels"], hidden_size],
    }
