"""Whether a directory holds what families with a UNet and CLIP's text encoders load.

Configurations and the headers of weights are read, no tensor is loaded; nothing heavy is imported.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_value_checks import find_bad_value
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.part_configs import (
    CONFIG_FILES,
    SAMPLE_SIZE,
    read_part_config,
)
from dreambooth_ray.models.pipeline_checks import (
    COPY_AGAIN,
    check_parts,
    describe_required_directory,
    read_shapes,
)
from dreambooth_ray.models.weight_shapes import find_mismatch

Configs = dict[str, dict[str, Any]]


def read_network_configs(directory: Path, family: ModelFamily) -> Configs:
    """Of all networks by part, with defaults, once their values are known to be usable.

    raises: ConfigError naming the file
    """
    check_parts(directory, family)
    scheduler_config = read_part_config(directory, "scheduler")
    if config_problem := find_bad_value("scheduler", scheduler_config):
        config_path = directory / "scheduler" / CONFIG_FILES["scheduler"]
        raise ConfigError(f"{config_path}: {config_problem}; {COPY_AGAIN}")
    return {part.name: read_part_config(directory, part.name) for part in family.networks}


def check_unet_inputs(directory: Path, family: ModelFamily, configs: Configs) -> None:
    """Whether the UNet takes what the text encoders and the VAE give.

    raises: ConfigError
    """
    unet_folder, unet_config = directory / "unet", configs["unet"]
    encoder_names = [part.name for part in family.text_encoders]
    unet_text_width = unet_config["cross_attention_dim"]
    text_width = sum(configs[n]["hidden_size"] for n in encoder_names)
    if unet_text_width != text_width:
        raise ConfigError(
            f"{unet_folder} takes text embeddings of width {unet_text_width}, and "
            f"{'/ and '.join(encoder_names)}/ {'gives' if len(encoder_names) == 1 else 'give'} "
            f"{text_width}; the parts are of different models"
        )
    unet_channels, latent_channels = unet_config["in_channels"], configs["vae"]["latent_channels"]
    # As they are, or with a mask and the masked image's latents behind them.
    if unet_channels not in (latent_channels, 2 * latent_channels + 1):
        raise ConfigError(
            f"{unet_folder} takes {unet_channels} channels, and vae/ gives {latent_channels}; "
            f"{describe_required_directory(family)}, one that images are generated from"
        )


def check_weights(directory: Path, family: ModelFamily, configs: Configs) -> None:
    """Weights by their configurations.

    raises: ConfigError naming the file
    """
    for network_part in family.networks:
        stored_shapes = read_shapes(directory, network_part)
        if shape_problem := find_mismatch(
            network_part.name, configs[network_part.name], stored_shapes
        ):
            raise ConfigError(
                f"{directory / network_part.name}: {shape_problem}; "
                "the files are of different models"
            )


# By the class of a directory's scheduler: that of models distilled for a few steps.
_DISTILLED_SOLVERS = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}


def restrict_to_sampling(family: ModelFamily, directory: Path) -> ModelFamily:
    """The family, without methods to train it by where that would make no sense.

    Its UNet sees a masked image, or was distilled for a few steps.
    """
    scheduler_class = _read_optional_config(directory, "scheduler").get("_class_name")
    if solver := _DISTILLED_SOLVERS.get(str(scheduler_class)):
        return replace(
            family,
            methods=(),
            instead=f"its scheduler ({scheduler_class}) is that of models distilled for a few "
            "steps, and training would undo that: train the base model, with the base model's "
            "scheduler",
            sampling_defaults={"solver": solver, "num_inference_steps": 4, "guidance_scale": 1.0},
        )
    unet_channels = _read_optional_config(directory, "unet").get("in_channels")
    num_latent_channels = _read_optional_config(directory, "vae").get("latent_channels")
    if unet_channels == num_latent_channels:
        return family
    return replace(
        family,
        methods=(),
        instead=f"an inpainting model, its UNet takes {unet_channels} channels: images can be "
        "generated with it, and it can't be trained; take the model that it was made from",
    )


def _read_optional_config(directory: Path, part: str) -> dict[str, Any]:
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
    vae_config, unet_config = (
        read_part_config(directory, "vae"),
        read_part_config(directory, "unet"),
    )
    num_downsamplings = (
        len(vae_config["block_out_channels"]) + len(unet_config["block_out_channels"]) - 2
    )
    return int(2**num_downsamplings)
