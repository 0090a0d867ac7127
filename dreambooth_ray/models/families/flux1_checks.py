"""Whether a directory holds a FLUX.1, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.part_configs import read_json, read_part_config
from dreambooth_ray.models.shape_checks import (
    Shapes,
    check_shapes,
    read_count_list,
    read_counts,
    repeat_shapes,
)
from dreambooth_ray.models.t5_checks import check_t5
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.models.weight_shapes import find_mismatch

# Latents that the transformer takes as one token, each way.
PATCH = 2
# Of T5 in a prompt: of dev, and of schnell, by their authors.
MAX_TOKENS, SCHNELL_MAX_TOKENS = 512, 256
EMBEDS_GUIDANCE = "guidance_embeds"
_TIME_WIDTH = 256
# Of FluxTransformer2DModel, where a configuration names none.
FLUX1_DEFAULTS = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
}  # fmt: skip
_AXES_DIMS = [16, 56, 56]


def check_networks(directory: Path) -> None:
    """Of a directory whose parts are there and of their classes.

    raises: ConfigError naming the file
    """
    transformer_folder = directory / "transformer"
    config_path = transformer_folder / "config.json"
    config_counts, transformer_config = (
        read_counts(config_path, **FLUX1_DEFAULTS),
        read_json(config_path),
    )
    check_transformer_form(config_path, config_counts, "FLUX.1", "FLUX.1-dev or FLUX.1-schnell")
    check_shapes(
        transformer_folder,
        list_transformer_shapes(config_counts, bool(transformer_config.get(EMBEDS_GUIDANCE))),
    )
    _check_other_parts(directory, config_counts)


def check_transformer_form(path: Path, counts: dict[str, int], title: str, models: str) -> None:
    """title: of the family; models: of it that can be taken, in words

    raises: ConfigError for positions of other widths, and for one that is shown images
    """
    transformer_config = read_json(path)
    rope_axes = read_count_list(path, transformer_config, "axes_dims_rope", _AXES_DIMS)
    if sum(rope_axes) != counts["attention_head_dim"]:
        raise ConfigError(
            f"{path}: axes_dims_rope={rope_axes} must add up to "
            f"attention_head_dim={counts['attention_head_dim']}"
        )
    output_channels = transformer_config.get("out_channels") or counts["in_channels"]
    if output_channels != counts["in_channels"] or transformer_config.get("patch_size", 1) != 1:
        raise ConfigError(
            f"{path} is of a {title} that is shown images (in_channels={counts['in_channels']}, "
            f"out_channels={output_channels}); take {models}"
        )


def _check_other_parts(directory: Path, counts: dict[str, int]) -> None:
    """Whether the other parts are whole, and give what the transformer takes."""
    clip_config = read_part_config(directory, "text_encoder")
    _check_part(directory, "text_encoder", clip_config)
    text_width_checks = [
        (
            "joint_attention_dim",
            "text of width",
            check_t5(directory / "text_encoder_2"),
            "text_encoder_2",
        ),
        (
            "pooled_projection_dim",
            "a pooled text of width",
            clip_config["hidden_size"],
            "text_encoder",
        ),
    ]
    check_parts_fit_transformer(directory, counts, text_width_checks)


def _check_part(directory: Path, part: str, config: dict[str, Any]) -> None:
    stored_shapes = find_weights(directory / part, part).read_shapes()
    if shape_problem := find_mismatch(part, config, stored_shapes):
        raise ConfigError(f"{directory / part}: {shape_problem}; the files are of different models")


def check_parts_fit_transformer(
    directory: Path, counts: dict[str, int], texts: list[tuple[str, str, int, str]]
) -> None:
    """Whether the VAE is whole, and it and the text encoders give what the transformer takes.

    texts: key of the transformer's configuration, what it is, what a text encoder gives and which
    raises: ConfigError naming the part
    """
    vae_config = read_part_config(directory, "vae")
    _check_part(directory, "vae", vae_config)
    patch_channels = int(vae_config["latent_channels"]) * PATCH**2
    for key, input_name, given_width, part in (
        ("in_channels", "channels of patches", patch_channels, "vae"),
        *texts,
    ):
        if counts[key] != given_width:
            raise ConfigError(
                f"{directory / 'transformer'} takes {input_name} {counts[key]}, and {part}/ gives "
                f"{given_width}; the parts are of different models"
            )


def list_transformer_shapes(counts: dict[str, int], embeds_guidance: bool) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    head_width = counts["attention_head_dim"]
    model_width = counts["num_attention_heads"] * head_width
    pooled_width = counts["pooled_projection_dim"]
    embedder_widths = {"timestep_embedder": _TIME_WIDTH, "text_embedder": pooled_width}
    if embeds_guidance:
        embedder_widths["guidance_embedder"] = _TIME_WIDTH
    double_block_shapes = {
        **_expect_linear("norm1.linear", model_width, 6 * model_width),
        **_expect_linear("norm1_context.linear", model_width, 6 * model_width),
        **list_two_stream_shapes(model_width, head_width),
    }
    single_block_shapes = {
        **_expect_linear("norm.linear", model_width, 3 * model_width),
        **list_one_stream_shapes(model_width, head_width),
    }
    shapes: Shapes = {}
    for name, input_width in embedder_widths.items():
        shapes |= _expect_linear(f"time_text_embed.{name}.linear_1", input_width, model_width)
        shapes |= _expect_linear(f"time_text_embed.{name}.linear_2", model_width, model_width)
    return {
        **shapes,
        **_expect_linear("context_embedder", counts["joint_attention_dim"], model_width),
        **_expect_linear("x_embedder", counts["in_channels"], model_width),
        **repeat_shapes("transformer_blocks", counts["num_layers"], double_block_shapes),
        **repeat_shapes(
            "single_transformer_blocks", counts["num_single_layers"], single_block_shapes
        ),
        **_expect_linear("norm_out.linear", model_width, 2 * model_width),
        **_expect_linear("proj_out", model_width, counts["in_channels"]),
    }


def list_two_stream_shapes(width: int, head: int) -> Shapes:
    """Of a block with a stream for text, less what the time is told by."""
    shapes: Shapes = {}
    for name in (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    ):  # fmt: skip
        shapes |= _expect_linear(f"attn.{name}", width, width)
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        shapes[f"attn.{name}.weight"] = [head]
    for name in ("ff", "ff_context"):
        shapes |= _expect_linear(f"{name}.net.0.proj", width, 4 * width)
        shapes |= _expect_linear(f"{name}.net.2", 4 * width, width)
    return shapes


def list_one_stream_shapes(width: int, head: int) -> Shapes:
    """Of a block with one stream, less what the time is told by."""
    shapes: Shapes = {
        **_expect_linear("proj_mlp", width, 4 * width),
        **_expect_linear("proj_out", 5 * width, width),
        "attn.norm_q.weight": [head],
        "attn.norm_k.weight": [head],
    }
    for name in ("to_q", "to_k", "to_v"):
        shapes |= _expect_linear(f"attn.{name}", width, width)
    return shapes


def _expect_linear(name: str, input_width: int, output_width: int) -> Shapes:
    return {f"{name}.weight": [output_width, input_width], f"{name}.bias": [output_width]}
