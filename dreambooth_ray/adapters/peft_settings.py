"""What peft's configuration of an adapter says of its scales. Nothing heavy is imported."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from dreambooth_ray.errors import ConfigError

_TYPES = ("LORA", "LOHA", "LOKR")
# Where a configuration sets one of these, an adapter is more than the product of its factors.
_UNKNOWN = (
    "alora_invocation_tokens", "arrow_config", "use_qalora", "layer_replication",
    "use_block_dora", "use_bdlora", "corda_config",
    "modules_to_save", "trainable_token_indices", "target_parameters",
)  # fmt: skip


@dataclass(frozen=True)
class PeftSettings:
    """Scales of the layers of one part, as peft or diffusers' metadata have them.

    rank_by_pattern, alpha_by_pattern: by pattern of a layer's name, where they differ
    """

    rank: int
    alpha: float
    rank_by_pattern: Mapping[str, int]
    alpha_by_pattern: Mapping[str, float]
    is_rank_stabilized: bool

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "PeftSettings":
        """From adapter_config.json; raises ConfigError naming a setting that is not known."""
        peft_type = str(values.get("peft_type") or "LORA")
        if peft_type not in _TYPES:
            raise ConfigError(f"peft_type={peft_type!r} is not read; LORA, LOHA and LOKR are")
        for name in _UNKNOWN:
            if values.get(name):
                raise ConfigError(f"its adapter_config.json sets {name}, which is not read")
        if values.get("bias") not in (None, "none") or values.get("lora_bias"):
            raise ConfigError("its adapter_config.json trains biases, which are not read")
        try:
            rank = int(values["r"])
            alpha = values.get("lora_alpha" if peft_type == "LORA" else "alpha")
            return cls(
                rank,
                float(rank if alpha is None else alpha),
                {str(k): int(v) for k, v in (values.get("rank_pattern") or {}).items()},
                {str(k): float(v) for k, v in (values.get("alpha_pattern") or {}).items()},
                bool(values.get("use_rslora")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"its settings have no numbers for rank and alpha: {error}"
            ) from error

    def find_scale(self, layer: str) -> float:
        """Of a layer, by its name in the part; raises ConfigError for a rank of zero."""
        rank = _find_by_pattern(self.rank_by_pattern, layer, self.rank)
        alpha = _find_by_pattern(self.alpha_by_pattern, layer, self.alpha)
        if rank < 1:
            raise ConfigError(f"its settings say rank {rank} of {layer}; at least 1 is taken")
        return float(alpha / (sqrt(rank) if self.is_rank_stabilized else rank))


def _find_by_pattern(values: Mapping[str, Any], layer: str, default: Any) -> Any:
    """As peft looks it up: the first pattern that the end of a layer's name matches."""
    for pattern, value in values.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
        except re.error as error:
            raise ConfigError(f"its settings have a pattern that is none: {pattern!r}") from error
    return default
