"""Whether a directory holds a Stable Diffusion 3 or 3.5, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.clip_checks import check_clip_text_encoder
from dreambooth_ray.models.part_configs import read_json, read_part_config
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_count_list, read_counts
from dreambooth_ray.models.t5_checks import check_t5
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.models.weight_shapes import find_mismatch

# Of SD3Transformer2DModel, where a configuration names none.
_DEFAULTS = {
    "patch_size": 2, "in_channels": 16, "num_layers": 18, "attention_head_dim": 64,
    "num_attention_heads": 18, "joint_attention_dim": 4096, "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 96,
}  # fmt: skip
_TIME_WIDTH = 256
_DUAL_LAYERS = "dual_attention_layers"
_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def check_networks(directory: Path, *, has_t5: bool) -> None:
    """Of a directory whose parts are there and of their classes.

    raises: ConfigError naming the file
    """
    transformer_folder = directory / "transformer"
    config_counts = read_counts(transformer_folder / "config.json", **_DEFAULTS)
    transformer_config = read_json(transformer_folder / "config.json")
    _check_transformer_config(transformer_folder / "config.json", config_counts, transformer_config)
    check_shapes(transformer_folder, list_transformer_shapes(config_counts, transformer_config))
    clip_widths = [
        check_clip_text_encoder(directory / f"text_encoder{encoder_suffix}")
        for encoder_suffix in ("", "_2")
    ]
    total_clip_width, pooled_width = (sum(pair) for pair in zip(*clip_widths, strict=True))
    text_width = config_counts["joint_attention_dim"]
    if pooled_width != config_counts["pooled_projection_dim"] or total_clip_width > text_width:
        raise ConfigError(
            f"{transformer_folder} takes text of width {text_width} and "
            f"{config_counts['pooled_projection_dim']} pooled, and text_encoder/ and "
            f"text_encoder_2/ give {total_clip_width} and {pooled_width}; the parts are of "
            "different models"
        )
    if has_t5:
        t5_width = check_t5(directory / "text_encoder_3")
        if t5_width != text_width:
            raise ConfigError(
                f"{transformer_folder} takes text of width {text_width}, and text_encoder_3/ gives "
                f"{t5_width}; the parts are of different models"
            )
    _check_vae(directory, config_counts["in_channels"])
    _check_scheduler(directory / "scheduler" / "scheduler_config.json")


def _check_transformer_config(
    path: Path, counts: dict[str, int], transformer_config: dict[str, Any]
) -> None:
    if transformer_config.get("qk_norm") not in (None, "rms_norm"):
        raise ConfigError(
            f"{path}: qk_norm={transformer_config['qk_norm']!r}; null and 'rms_norm' are known"
        )
    if transformer_config.get(_DUAL_LAYERS) is not None:
        read_count_list(path, transformer_config, _DUAL_LAYERS, ())
    hidden_size = counts["num_attention_heads"] * counts["attention_head_dim"]
    if counts["caption_projection_dim"] != hidden_size:
        raise ConfigError(
            f"{path}: caption_projection_dim={counts['caption_projection_dim']} must be the width "
            f"of all heads, {hidden_size}"
        )
    if counts["in_channels"] != counts["out_channels"]:
        raise ConfigError(
            f"{path}: in_channels={counts['in_channels']}, out_channels={counts['out_channels']}; "
            "a transformer that sees more than latents can't be taken"
        )


def _check_vae(directory: Path, num_channels: int) -> None:
    vae_folder, vae_config = directory / "vae", read_part_config(directory, "vae")
    stored_shapes = find_weights(vae_folder, "vae").read_shapes()
    if problem := find_mismatch("vae", vae_config, stored_shapes):
        raise ConfigError(f"{vae_folder}: {problem}; the files are of different models")
    if vae_config["latent_channels"] != num_channels:
        raise ConfigError(
            f"{directory / 'transformer'} takes {num_channels} channels, and vae/ gives "
            f"{vae_config['latent_channels']}; the parts are of different models"
        )


def _check_scheduler(path: Path) -> None:
    scheduler_config = read_json(path)
    scheduler_class = scheduler_config.get("_class_name", _SCHEDULER)
    if scheduler_class != _SCHEDULER:
        raise ConfigError(
            f"{path} names {scheduler_class}, and Stable Diffusion 3 has {_SCHEDULER}"
        )
    if scheduler_config.get("num_train_timesteps", 1000) != 1000:
        raise ConfigError(
            f"{path}: num_train_timesteps={scheduler_config['num_train_timesteps']!r}, and Stable "
            "Diffusion 3 has 1000"
        )


def list_transformer_shapes(counts: dict[str, int], form: dict[str, Any]) -> Shapes:
    """Shape of each tensor.

    counts: of the configuration, by its keys; form: its qk_norm and dual_attention_layers
    """
    hidden_size = counts["num_attention_heads"] * counts["attention_head_dim"]
    patch_size = counts["patch_size"]
    embedder_widths = {
        "time_text_embed.timestep_embedder": _TIME_WIDTH,
        "time_text_embed.text_embedder": counts["pooled_projection_dim"],
    }
    expected_shapes: Shapes = {
        "pos_embed.pos_embed": [1, counts["pos_embed_max_size"] ** 2, hidden_size],
        "pos_embed.proj.weight": [hidden_size, counts["in_channels"], patch_size, patch_size],
        "pos_embed.proj.bias": [hidden_size],
        **_expect_linear("context_embedder", hidden_size, counts["joint_attention_dim"]),
        **_expect_linear("norm_out.linear", 2 * hidden_size, hidden_size),
        **_expect_linear("proj_out", patch_size**2 * counts["out_channels"], hidden_size),
    }
    for layer_name, input_width in embedder_widths.items():
        expected_shapes |= _expect_linear(f"{layer_name}.linear_1", hidden_size, input_width)
        expected_shapes |= _expect_linear(f"{layer_name}.linear_2", hidden_size, hidden_size)
    head_dim = counts["attention_head_dim"] if form.get("qk_norm") else None
    dual_attention_layers = form.get(_DUAL_LAYERS) or ()
    for index in range(counts["num_layers"]):
        block_shapes = _expect_block(
            hidden_size,
            head_dim,
            is_dual=index in dual_attention_layers,
            is_last=index == counts["num_layers"] - 1,
        )
        expected_shapes |= {
            f"transformer_blocks.{index}.{tensor_name}": shape
            for tensor_name, shape in block_shapes.items()
        }
    return expected_shapes


def _expect_block(width: int, head_dim: int | None, *, is_dual: bool, is_last: bool) -> Shapes:
    """head_dim: where queries and keys are normed. The last block gives no text."""
    block_shapes = _expect_attention("attn", width, head_dim)
    for layer_name in ("add_q_proj", "add_k_proj", "add_v_proj"):
        block_shapes |= _expect_linear(f"attn.{layer_name}", width, width)
    if head_dim:
        block_shapes |= {f"attn.norm_added_{x}.weight": [head_dim] for x in ("q", "k")}
    if is_dual:
        block_shapes |= _expect_attention("attn2", width, head_dim)
    block_shapes |= _expect_linear("norm1.linear", (9 if is_dual else 6) * width, width)
    block_shapes |= _expect_linear("norm1_context.linear", (2 if is_last else 6) * width, width)
    if not is_last:
        block_shapes |= _expect_linear("attn.to_add_out", width, width)
    for layer_name in ("ff",) if is_last else ("ff", "ff_context"):
        block_shapes |= _expect_linear(f"{layer_name}.net.0.proj", 4 * width, width)
        block_shapes |= _expect_linear(f"{layer_name}.net.2", width, 4 * width)
    return block_shapes


def _expect_attention(name: str, width: int, head_dim: int | None) -> Shapes:
    attention_shapes: Shapes = {}
    for projection_name in ("to_q", "to_k", "to_v", "to_out.0"):
        attention_shapes |= _expect_linear(f"{name}.{projection_name}", width, width)
    if head_dim:
        attention_shapes |= {f"{name}.norm_{x}.weight": [head_dim] for x in ("q", "k")}
    return attention_shapes


def _expect_linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}
