"""Whether a directory holds a Z-Image, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.part_configs import read_json, read_part_config
from dreambooth_ray.models.qwen3_checks import check_qwen3
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts, repeat_shapes
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
    folder, vae_folder = directory / "transformer", directory / "vae"
    counts = read_counts(folder / "config.json", **_DEFAULTS)
    _check_form(folder / "config.json", counts)
    check_shapes(folder, list_transformer_shapes(counts))
    width = check_qwen3(directory / "text_encoder", directory / "tokenizer", min_layers=2)
    if counts["cap_feat_dim"] != width:
        raise ConfigError(
            f"{folder} takes text of width {counts['cap_feat_dim']}, and text_encoder/ gives "
            f"{width}; the parts are of different models"
        )
    vae = read_part_config(directory, "vae")
    shapes = find_weights(vae_folder, "vae").read_shapes()
    if problem := find_mismatch("vae", vae, shapes):
        raise ConfigError(f"{vae_folder}: {problem}; the files are of different models")
    if counts["in_channels"] != vae["latent_channels"]:
        raise ConfigError(
            f"{folder} takes {counts['in_channels']} channels, and vae/ gives "
            f"{vae['latent_channels']}; the parts are of different models"
        )


def _check_form(path: Path, counts: dict[str, int]) -> None:
    config: dict[str, Any] = read_json(path)
    for key, value in (("all_patch_size", [PATCH]), ("all_f_patch_size", [1]), ("qk_norm", True)):
        if config.get(key, value) != value:
            raise ConfigError(f"{path}: {key}={config[key]!r}, and Z-Image has {value!r}")
    if config.get("siglip_feat_dim") is not None:
        raise ConfigError(f"{path} is of Z-Image-Omni, which sees images; take Z-Image")
    axes = config.get("axes_dims", _AXES_DIMS)
    if counts["dim"] % counts["n_heads"] or sum(axes) != counts["dim"] // counts["n_heads"]:
        raise ConfigError(
            f"{path}: axes_dims={axes} must add up to the width of a head, dim={counts['dim']} "
            f"by n_heads={counts['n_heads']}"
        )


def list_transformer_shapes(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    width, patch = counts["dim"], counts["in_channels"] * PATCH**2
    inner, time = int(width / 3 * 8), min(width, _TIME_WIDTH)
    head = [width // counts["n_heads"]]
    block: Shapes = {
        **{f"attention.{name}.weight": [width, width] for name in ("to_q", "to_k", "to_v")},
        "attention.to_out.0.weight": [width, width],
        "attention.norm_q.weight": head,
        "attention.norm_k.weight": head,
        "feed_forward.w1.weight": [inner, width],
        "feed_forward.w2.weight": [width, inner],
        "feed_forward.w3.weight": [inner, width],
        **{
            f"{name}.weight": [width]
            for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
        },
    }
    timed_block = block | {
        "adaLN_modulation.0.weight": [4 * width, time],
        "adaLN_modulation.0.bias": [4 * width],
    }
    return {
        "all_x_embedder.2-1.weight": [width, patch],
        "all_x_embedder.2-1.bias": [width],
        "all_final_layer.2-1.linear.weight": [patch, width],
        "all_final_layer.2-1.linear.bias": [patch],
        "all_final_layer.2-1.adaLN_modulation.1.weight": [width, time],
        "all_final_layer.2-1.adaLN_modulation.1.bias": [width],
        "t_embedder.mlp.0.weight": [_TIME_INNER, _TIME_WIDTH],
        "t_embedder.mlp.0.bias": [_TIME_INNER],
        "t_embedder.mlp.2.weight": [time, _TIME_INNER],
        "t_embedder.mlp.2.bias": [time],
        "cap_embedder.0.weight": [counts["cap_feat_dim"]],
        "cap_embedder.1.weight": [width, counts["cap_feat_dim"]],
        "cap_embedder.1.bias": [width],
        "x_pad_token": [1, width],
        "cap_pad_token": [1, width],
        **repeat_shapes("noise_refiner", counts["n_refiner_layers"], timed_block),
        **repeat_shapes("context_refiner", counts["n_refiner_layers"], block),
        **repeat_shapes("layers", counts["n_layers"], timed_block),
    }
