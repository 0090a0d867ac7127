"""Which adapters an image is sampled with, and how much of each."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dreambooth_ray.errors import ConfigError

MAX_ADAPTERS, MAX_WEIGHT = 16, 10.0


@dataclass(frozen=True)
class AdapterUse:
    """name: as the engine has loaded it; weight: what it adds is multiplied by that"""

    name: str
    weight: float = 1.0


# All that a row of a forward goes through; none is the model itself.
AdapterMix = tuple[AdapterUse, ...]


def check_mix_limits(mix: Sequence[AdapterUse]) -> None:
    """raises: ConfigError for too many, a weight beyond its bounds, or one that is named twice"""
    if len(mix) > MAX_ADAPTERS:
        raise ConfigError(f"adapters has {len(mix)} entries; at most {MAX_ADAPTERS} are taken")
    for adapter_use in mix:
        if not (math.isfinite(adapter_use.weight) and abs(adapter_use.weight) <= MAX_WEIGHT):
            raise ConfigError(
                f"adapters: weight={adapter_use.weight} of {adapter_use.name!r} must be from "
                f"{-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            )
    adapter_names = [adapter_use.name for adapter_use in mix]
    if repeated_name := next(
        (name for name in adapter_names if adapter_names.count(name) > 1), None
    ):
        raise ConfigError(f"adapters names {repeated_name!r} twice; give it once, with one weight")


def describe_mix(mix: Iterable[AdapterUse]) -> str:
    """As a receipt has it: a JSON list."""
    return json.dumps([{"name": use.name, "weight": use.weight} for use in mix])
