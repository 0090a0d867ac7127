"""Whether a scheduler's configuration is one that a family's process can go by."""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_value_checks import find_bad_value
from dreambooth_ray.models.part_configs import CONFIG_FILES, read_json, read_part_config


def check_scheduler(
    directory: Path,
    process: Literal["diffusion", "flow"],
    what: str,
    flow_schedulers: Collection[str] = (),
) -> None:
    """what: a directory has to be, in words; flow_schedulers: as of `ModelFamily`

    raises: ConfigError naming the file
    """
    path = directory / "scheduler" / CONFIG_FILES["scheduler"]
    if process == "flow":
        _check_flow_scheduler(path, what, flow_schedulers)
    else:
        _check_diffusion_scheduler(directory, what)


def _check_flow_scheduler(path: Path, what: str, others: Collection[str]) -> None:
    config = read_json(path)
    scheduler_class = str(config.get("_class_name", ""))
    if scheduler_class in others:
        if problem := find_bad_value("flow_dpm_scheduler", config):
            raise ConfigError(f"{path}: {problem}; copy it again")
        return
    if scheduler_class and not scheduler_class.startswith("FlowMatch"):
        raise ConfigError(
            f"{path} says {scheduler_class}, not FlowMatchEulerDiscreteScheduler; {what}"
        )
    if problem := find_bad_value("flow_scheduler", config):
        raise ConfigError(f"{path}: {problem}; copy it again")
    if config.get("use_beta_sigmas") and find_spec("scipy") is None:
        raise ConfigError(f"{path}: use_beta_sigmas=true needs scipy: `pip install scipy`")


def _check_diffusion_scheduler(directory: Path, what: str) -> None:
    scheduler_config = read_part_config(directory, "scheduler")
    scheduler_class, prediction_type = (
        str(scheduler_config.get("_class_name", "")),
        scheduler_config["prediction_type"],
    )
    if "Flow" in scheduler_class or "EDM" in scheduler_class:
        raise ConfigError(f"{directory / 'scheduler'} is a {scheduler_class}; {what}")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"{directory / 'scheduler'} says prediction_type={prediction_type!r}; epsilon and "
            "v_prediction can be trained and sampled"
        )
