"""Whether a directory holds what families with a UNet and CLIP's text encoders load.

Configurations and the headers of weights are read, no tensor is loaded; nothing heavy is imported.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_values import find_bad_value
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.part_configs import (
    CONFIG_FILES,
    SAMPLE_SIZE,
    read_part_config,
)
from dreambooth_ray.models.pipeline_checks import check_parts, describe_directory, read_shapes
from dreambooth_ray.models.weight_shapes import find_mismatch

Configs = dict[str, dict[str, Any]]
_COPY_AGAIN = "copy it again, or take a model that diffusers has written"


def read_configs(directory: Path, family: ModelFamily) -> Configs:
    """Of all networks by part, with defaults, once their values are known to be usable.

    raises: ConfigError naming the file
    """
    check_parts(directory, family)
    configs = {part.name: read_part_config(directory, part.name) for part in family.networks}
    scheduler_config = read_part_config(directory, "scheduler")
    for part, config in {**configs, "scheduler": scheduler_config}.items():
        if problem := find_bad_value(part, config):
            path = directory / part / CONFIG_FILES[part]
            raise ConfigError(f"{path}: {problem}; {_COPY_AGAIN}")
    return configs


def check_widths(directory: Path, family: ModelFamily, configs: Configs) -> None:
    """Whether the UNet takes what the text encoders and the VAE give.

    raises: ConfigError
    """
    folder, unet = directory / "unet", configs["unet"]
    encoder_names = [part.name for part in family.text_encoders]
    unet_text_width = unet["cross_attention_dim"]
    text_width = sum(configs[n]["hidden_size"] for n in encoder_names)
    if unet_text_width != text_width:
        raise ConfigError(
            f"{folder} takes text embeddings of width {unet_text_width}, and "
            f"{'/ and '.join(encoder_names)}/ {'gives' if len(encoder_names) == 1 else 'give'} "
            f"{text_width}; the parts are of different models"
        )
    unet_channels, latent_channels = unet["in_channels"], configs["vae"]["latent_channels"]
    # As they are, or with a mask and the masked image's latents behind them.
    if unet_channels not in (latent_channels, 2 * latent_channels + 1):
        raise ConfigError(
            f"{folder} takes {unet_channels} channels, and vae/ gives {latent_channels}; "
            f"{describe_directory(family)}, one that images are generated from"
        )


def check_weights(directory: Path, family: ModelFamily, configs: Configs) -> None:
    """Weights by their configurations.

    raises: ConfigError naming the file
    """
    for network in family.networks:
        shapes = read_shapes(directory, network)
        if problem := find_mismatch(network.name, configs[network.name], shapes):
            raise ConfigError(
                f"{directory / network.name}: {problem}; the files are of different models"
            )


# By the class of a directory's scheduler: that of models distilled for a few steps.
_DISTILLED_SOLVERS = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}


def restrict_to_sampling(family: ModelFamily, directory: Path) -> ModelFamily:
    """The family, without methods to train it by where that would make no sense.

    Its UNet sees a masked image, or was distilled for a few steps.
    """
    scheduler_class = _read_config(directory, "scheduler").get("_class_name")
    if solver := _DISTILLED_SOLVERS.get(str(scheduler_class)):
        return replace(
            family,
            methods=(),
            instead=f"its scheduler ({scheduler_class}) is that of models distilled for a few "
            "steps, and training would undo that: train the base model, with the base model's "
            "scheduler",
            sampling_defaults={"solver": solver, "num_inference_steps": 4, "guidance_scale": 1.0},
        )
    num_channels = _read_config(directory, "unet").get("in_channels")
    num_latent_channels = _read_config(directory, "vae").get("latent_channels")
    if num_channels == num_latent_channels:
        return family
    return replace(
        family,
        methods=(),
        instead=f"an inpainting model, its UNet takes {num_channels} channels: images can be "
        "generated with it, and it can't be trained; take the model that it was made from",
    )


def _read_config(directory: Path, part: str) -> dict[str, Any]:
    """Empty where it can't be read, which the directory's check says better."""
    try:
        return read_part_config(directory, part)
    except ConfigError:
        return {}


def read_default_side(directory: Path) -> int:
    """Of the square images that it was trained on, by the UNet's sample_size; pixels."""
    sample_size = read_part_config(directory, "unet")["sample_size"] or SAMPLE_SIZE
    block_widths = read_part_config(directory, "vae")["block_out_channels"]
    return int(sample_size * 2 ** (len(block_widths) - 1))


def read_size_multiple(directory: Path) -> int:
    """The UNet halves latents at every block but the last."""
    vae, unet = read_part_config(directory, "vae"), read_part_config(directory, "unet")
    num_halvings = len(vae["block_out_channels"]) + len(unet["block_out_channels"]) - 2
    return int(2**num_halvings)
