"""Whether a directory holds a Z-Image, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.part_configs import read_json, read_part_config
from dreambooth_ray.models.qwen3_checks import check_qwen3
from dreambooth_ray.models.shape_checks import (
    Shapes,
    check_shapes,
    read_count_list,
    read_counts,
    repeat_shapes,
)
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.models.weight_shapes import find_mismatch

# Latents that the transformer takes as one token, each way.
PATCH = 2
MAX_TOKENS = 512  # of a prompt with the marks of its message
# Of ZImageTransformer2DModel, where a configuration names none.
_DEFAULTS = {
    "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30,
    "cap_feat_dim": 2560,
}  # fmt: skip
_AXES_DIMS = [32, 48, 48]
_TIME_WIDTH, _TIME_INNER = 256, 1024


def check_networks(directory: Path) -> None:
    """Of a directory whose parts are there and of their classes.

    raises: ConfigError naming the file
    """
    transformer_folder, vae_folder = directory / "transformer", directory / "vae"
    config_counts = read_counts(transformer_folder / "config.json", **_DEFAULTS)
    _check_transformer_config(transformer_folder / "config.json", config_counts)
    check_shapes(transformer_folder, list_transformer_shapes(config_counts))
    text_width = check_qwen3(directory / "text_encoder", directory / "tokenizer", min_layers=2)
    if config_counts["cap_feat_dim"] != text_width:
        raise ConfigError(
            f"{transformer_folder} takes text of width {config_counts['cap_feat_dim']}, and "
            f"text_encoder/ gives {text_width}; the parts are of different models"
        )
    vae_config = read_part_config(directory, "vae")
    stored_shapes = find_weights(vae_folder, "vae").read_shapes()
    if problem := find_mismatch("vae", vae_config, stored_shapes):
        raise ConfigError(f"{vae_folder}: {problem}; the files are of different models")
    if config_counts["in_channels"] != vae_config["latent_channels"]:
        raise ConfigError(
            f"{transformer_folder} takes {config_counts['in_channels']} channels, and vae/ gives "
            f"{vae_config['latent_channels']}; the parts are of different models"
        )


def _check_transformer_config(path: Path, counts: dict[str, int]) -> None:
    config: dict[str, Any] = read_json(path)
    for key, value in (("all_patch_size", [PATCH]), ("all_f_patch_size", [1]), ("qk_norm", True)):
        if config.get(key, value) != value:
            raise ConfigError(f"{path}: {key}={config[key]!r}, and Z-Image has {value!r}")
    if config.get("siglip_feat_dim") is not None:
        raise ConfigError(f"{path} is of Z-Image-Omni, which sees images; take Z-Image")
    axes_dims = read_count_list(path, config, "axes_dims", _AXES_DIMS)
    if counts["dim"] % counts["n_heads"] or sum(axes_dims) != counts["dim"] // counts["n_heads"]:
        raise ConfigError(
            f"{path}: axes_dims={axes_dims} must add up to the width of a head, "
            f"dim={counts['dim']} by n_heads={counts['n_heads']}"
        )


def list_transformer_shapes(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    hidden_size, patch_channels = counts["dim"], counts["in_channels"] * PATCH**2
    mlp_width, time_width = int(hidden_size / 3 * 8), min(hidden_size, _TIME_WIDTH)
    head_norm_shape = [hidden_size // counts["n_heads"]]
    block_shapes: Shapes = {
        **{
            f"attention.{layer_name}.weight": [hidden_size, hidden_size]
            for layer_name in ("to_q", "to_k", "to_v")
        },
        "attention.to_out.0.weight": [hidden_size, hidden_size],
        "attention.norm_q.weight": head_norm_shape,
        "attention.norm_k.weight": head_norm_shape,
        "feed_forward.w1.weight": [mlp_width, hidden_size],
        "feed_forward.w2.weight": [hidden_size, mlp_width],
        "feed_forward.w3.weight": [mlp_width, hidden_size],
        **{
            f"{layer_name}.weight": [hidden_size]
            for layer_name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
        },
    }
    timed_block_shapes = block_shapes | {
        "adaLN_modulation.0.weight": [4 * hidden_size, time_width],
        "adaLN_modulation.0.bias": [4 * hidden_size],
    }
    return {
        "all_x_embedder.2-1.weight": [hidden_size, patch_channels],
        "all_x_embedder.2-1.bias": [hidden_size],
        "all_final_layer.2-1.linear.weight": [patch_channels, hidden_size],
        "all_final_layer.2-1.linear.bias": [patch_channels],
        "all_final_layer.2-1.adaLN_modulation.1.weight": [hidden_size, time_width],
        "all_final_layer.2-1.adaLN_modulation.1.bias": [hidden_size],
        "t_embedder.mlp.0.weight": [_TIME_INNER, _TIME_WIDTH],
        "t_embedder.mlp.0.bias": [_TIME_INNER],
        "t_embedder.mlp.2.weight": [time_width, _TIME_INNER],
        "t_embedder.mlp.2.bias": [time_width],
        "cap_embedder.0.weight": [counts["cap_feat_dim"]],
        "cap_embedder.1.weight": [hidden_size, counts["cap_feat_dim"]],
        "cap_embedder.1.bias": [hidden_size],
        "x_pad_token": [1, hidden_size],
        "cap_pad_token": [1, hidden_size],
        **repeat_shapes("noise_refiner", counts["n_refiner_layers"], timed_block_shapes),
        **repeat_shapes("context_refiner", counts["n_refiner_layers"], block_shapes),
        **repeat_shapes("layers", counts["n_layers"], timed_block_shapes),
    }
