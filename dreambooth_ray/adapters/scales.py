"""Scales of an adapter's products: the file's alphas, or what peft or diffusers say beside it."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from dreambooth_ray.adapters.file_keys import shorten_key
from dreambooth_ray.adapters.peft_settings import PeftSettings
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.peft_files import PREFIX, SETTINGS, WEIGHTS


class LayerScales:
    """Finds the scale of a layer of one file."""

    def __init__(self, file: Path, metadata: Mapping[str, Any]) -> None:
        """metadata: diffusers', `part.setting` to its value; raises ConfigError"""
        self._of_part: dict[str, PeftSettings] = {}
        self._of_file: PeftSettings | None = None
        settings_file = file.parent / SETTINGS
        if file.name == WEIGHTS and settings_file.is_file():
            self._of_file = PeftSettings.parse(_read_peft_config_file(settings_file))
        settings_by_part: dict[str, dict[str, Any]] = {}
        for metadata_key, value in metadata.items():
            part, _, setting_name = metadata_key.rpartition(".")
            settings_by_part.setdefault(part, {})[setting_name] = value
        for part, values in settings_by_part.items():
            if "r" in values:
                self._of_part[part] = PeftSettings.parse(values)

    def find(self, file_layer: str, rank: int | None, alpha: Tensor | None) -> float:
        """file_layer: as the file calls it; rank: None where both of LoKr's factors are whole."""
        if alpha is not None:
            # LyCORIS has no scale where there is no rank.
            return float(alpha) / rank if rank else 1.0
        if self._of_file:
            return self._of_file.find_scale(file_layer.removeprefix(PREFIX))
        for part, settings in self._of_part.items():
            if file_layer.startswith(f"{part}."):
                return settings.find_scale(file_layer.removeprefix(f"{part}."))
        return 1.0


def check_tensor_is_finite(key: str, tensor: Tensor) -> Tensor:
    """A file's tensor as it is computed with; raises ConfigError where it holds NaN or infinity."""
    float_tensor = tensor.float()
    if not bool(float_tensor.isfinite().all()):
        raise ConfigError(
            f"{shorten_key(key)} holds numbers that are not finite; the file is damaged"
        )
    # Types of eight bits are for storage alone.
    return float_tensor if tensor.element_size() == 1 or prod(tensor.shape) == 1 else tensor


def _read_peft_config_file(path: Path) -> dict[str, Any]:
    try:
        peft_settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(peft_settings, dict):
        raise ConfigError(f"{path} is no JSON object")
    return peft_settings
