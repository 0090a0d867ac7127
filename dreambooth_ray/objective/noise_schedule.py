"""A model's noise schedule, from its scheduler's configuration."""

import json
from dataclasses import dataclass
from typing import Any

from dreambooth_ray.errors import ConfigError


@dataclass(frozen=True)
class NoiseScheduleConfig:
    """A model's noise schedule, hashable: its scheduler's configuration as JSON."""

    config: str

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NoiseScheduleConfig":
        """From a diffusers scheduler's configuration."""
        config_values = {k: v for k, v in dict(config).items() if not k.startswith("_")}
        return cls(json.dumps(config_values, sort_keys=True, default=list))

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as a dictionary."""
        scheduler_config: dict[str, Any] = json.loads(self.config)
        return scheduler_config

    @property
    def prediction_type(self) -> str:
        """'epsilon' or 'v_prediction'; raises ConfigError for others."""
        prediction_type = str(self.settings.get("prediction_type", "epsilon"))
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"model.uri: its scheduler predicts {prediction_type!r}; "
                "epsilon and v_prediction can be drawn"
            )
        return prediction_type


@dataclass(frozen=True)
class FlowSchedule:
    """Noise levels of flow matching, hashable: sigmas from the first down to 0, the last.

    A solver of n steps has n + 1 of them.
    """

    sigmas: tuple[float, ...]
