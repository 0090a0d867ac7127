"""Packages that only some configurations need, checked before work starts."""

import importlib.util

from dreambooth_ray.config.optimizers import TRAITS
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.imports import how_to_install


def check_packages(config: Config) -> None:
    """raises ConfigError if something configured needs a package that is not installed."""
    quantization = config.model.quantization
    if quantization != "none":
        package = "bitsandbytes" if quantization == "nf4" else "torchao"
        _check_package_installed(package, f"model.quantization={quantization}")
    if package := TRAITS[config.train.optimizer].package:
        _check_package_installed(package, f"train.optimizer={config.train.optimizer}")
    if config.train.strategy == "deepspeed":
        _check_package_installed("deepspeed", "train.strategy=deepspeed")
    for tracking_package in ("wandb", "mlflow"):
        if tracking_package in config.tracking.loggers:
            _check_package_installed(tracking_package, f"tracking.loggers: {tracking_package}")


def _check_package_installed(package: str, setting: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{setting} needs {package}, which is not installed: "
            f"{how_to_install(package) or f'pip install {package}'}, or choose another"
        )
