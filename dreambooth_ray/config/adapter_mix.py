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


def check_mix(mix: Sequence[AdapterUse]) -> None:
    """raises: ConfigError for too many, a weight beyond its bounds, or one that is named twice"""
    if len(mix) > MAX_ADAPTERS:
        raise ConfigError(f"adapters has {len(mix)} entries; at most {MAX_ADAPTERS} are taken")
    for use in mix:
        if not (math.isfinite(use.weight) and abs(use.weight) <= MAX_WEIGHT):
            raise ConfigError(
                f"adapters: weight={use.weight} of {use.name!r} must be from {-MAX_WEIGHT:g} to "
                f"{MAX_WEIGHT:g}"
            )
    names = [use.name for use in mix]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"adapters names {repeated!r} twice; give it once, with one weight")


def describe_mix(mix: Iterable[AdapterUse]) -> str:
    """As a receipt has it: a JSON list."""
    return json.dumps([{"name": use.name, "weight": use.weight} for use in mix])
