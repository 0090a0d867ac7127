"""Whether a directory holds a Qwen-Image, by its files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.layer_shapes import expect_affine
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.qwen25_vl_checks import check_qwen25_vl
from dreambooth_ray.models.qwen_vae_checks import check_qwen_vae
from dreambooth_ray.models.shape_checks import Shapes, check_shapes, read_counts, repeat_shapes

# Latents that the transformer takes as one token, each way.
PATCH = 2
MAX_TOKENS = 1024  # of a prompt with the marks behind it
# Of QwenImageTransformer2DModel, where a configuration names none.
_DEFAULTS = {
    "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584,
}  # fmt: skip
_AXES_DIMS = [16, 56, 56]
_TIME_WIDTH = 256
# What transformers of the family's other models have, and what those are.
_OTHER_FORMS = {
    "guidance_embeds": "is distilled by guidance",
    "zero_cond_t": "is shown images",
    "use_additional_t_cond": "gives layers",
    "use_layer3d_rope": "gives layers",
}
_ATTENTION = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
)  # fmt: skip


def check_networks(directory: Path) -> None:
    """Of a directory whose parts are there and of their classes.

    raises: ConfigError naming the file
    """
    folder = directory / "transformer"
    counts = read_counts(folder / "config.json", **_DEFAULTS)
    _check_form(folder / "config.json", counts)
    check_shapes(folder, list_transformer_shapes(counts))
    channels = check_qwen_vae(directory / "vae") * PATCH**2
    text_width = check_qwen25_vl(directory / "text_encoder")
    for key, what, count, part in (
        ("in_channels", "channels of patches", channels, "vae"),
        ("joint_attention_dim", "text of width", text_width, "text_encoder"),
    ):
        if counts[key] != count:
            raise ConfigError(
                f"{folder} takes {what} {counts[key]}, and {part}/ gives {count}; the parts are of "
                "different models"
            )


def _check_form(path: Path, counts: dict[str, int]) -> None:
    config: dict[str, Any] = read_json(path)
    for key, what in _OTHER_FORMS.items():
        if config.get(key):
            raise ConfigError(f"{path}: {key}=true is of a Qwen-Image that {what}; take Qwen-Image")
    axes = config.get("axes_dims_rope", _AXES_DIMS)
    if sum(axes) != counts["attention_head_dim"] or any(width % 2 for width in axes):
        raise ConfigError(
            f"{path}: axes_dims_rope={axes} must be even and add up to "
            f"attention_head_dim={counts['attention_head_dim']}"
        )
    num_values = counts["out_channels"] * PATCH**2
    if counts["patch_size"] != PATCH or counts["in_channels"] != num_values:
        raise ConfigError(
            f"{path}: patch_size={counts['patch_size']} must be {PATCH}, and "
            f"in_channels={counts['in_channels']} what out_channels={counts['out_channels']} are "
            f"in patches, {num_values}"
        )


def list_transformer_shapes(counts: dict[str, int]) -> Shapes:
    """Shape of each tensor; counts: of the configuration, by its keys"""
    head = counts["attention_head_dim"]
    width = counts["num_attention_heads"] * head
    block: Shapes = {}
    for name in _ATTENTION:
        block |= expect_affine(f"attn.{name}", width, width)
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        block[f"attn.{name}.weight"] = [head]
    for stream in ("img", "txt"):
        block |= expect_affine(f"{stream}_mod.1", 6 * width, width)
        block |= expect_affine(f"{stream}_mlp.net.0.proj", 4 * width, width)
        block |= expect_affine(f"{stream}_mlp.net.2", width, 4 * width)
    embedder = "time_text_embed.timestep_embedder"
    return {
        **expect_affine(f"{embedder}.linear_1", width, _TIME_WIDTH),
        **expect_affine(f"{embedder}.linear_2", width, width),
        "txt_norm.weight": [counts["joint_attention_dim"]],
        **expect_affine("img_in", width, counts["in_channels"]),
        **expect_affine("txt_in", width, counts["joint_attention_dim"]),
        **repeat_shapes("transformer_blocks", counts["num_layers"], block),
        **expect_affine("norm_out.linear", 2 * width, width),
        **expect_affine("proj_out", counts["patch_size"] ** 2 * counts["out_channels"], width),
    }
