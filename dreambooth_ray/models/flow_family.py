"""What families of flow matching say of themselves alike. Nothing heavy is imported."""

from functools import partial
from pathlib import Path

from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.part_configs import read_part_config

# Of AutoencoderKL, where a configuration names none.
_SIDE = 1024

# A family of flow matching; takes the rest of a `ModelFamily`.
make_flow_family = partial(
    ModelFamily,
    process="flow",
    solvers=("euler", "heun", "dpmpp_2m"),
    half_dtype="bfloat16",
)


def read_latent_factor(directory: Path) -> int:
    """Pixels that a latent of the VAE spans each way."""
    return compute_latent_factor(read_part_config(directory, "vae"))


def read_vae_side(directory: Path) -> int:
    """The VAE's sample_size, pixels."""
    return int(read_part_config(directory, "vae").get("sample_size", _SIDE))
