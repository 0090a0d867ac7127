"""A model's forward process, as its scheduler's configuration has it."""

import json
from dataclasses import dataclass
from typing import Any

from dreambooth_ray.errors import ConfigError


@dataclass(frozen=True)
class NoiseSchedule:
    """A model's forward process, hashable: its scheduler's configuration as JSON."""

    config: str

    @classmethod
    def of(cls, config: dict[str, Any]) -> "NoiseSchedule":
        """From a diffusers scheduler's configuration."""
        public = {k: v for k, v in dict(config).items() if not k.startswith("_")}
        return cls(json.dumps(public, sort_keys=True, default=list))

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration again."""
        settings: dict[str, Any] = json.loads(self.config)
        return settings

    @property
    def prediction(self) -> str:
        """'epsilon' or 'v_prediction'; raises ConfigError for others."""
        kind = str(self.settings.get("prediction_type", "epsilon"))
        if kind not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"model.uri: its scheduler predicts {kind!r}; epsilon and v_prediction can be drawn"
            )
        return kind
